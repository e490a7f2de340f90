import { randomBytes, X509Certificate } from 'node:crypto'
import { chmodSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { connect } from 'node:tls'
import t from 'tap'
import { openLog } from '#shared/log'
import { Lifecycle } from '#shared/service'
import type { Config } from '../../enrollment/config.ts'
import { startPlane } from '../../enrollment/plane.ts'
import { enrollDevice, freeConfig, newRequest, operatorPair, startEnrollment } from '../support/enrollment.ts'

const DAY_MS = 86_400_000

/** Starts with this configuration and stops again; rejects as the start does. */
async function tryStart(config: Config, options: { offsetMs?: number } = {}): Promise<void> {
  const log = openLog('enrollment', 'silent')
  const lifecycle = new Lifecycle(log)
  const now = () => Date.now() + (options.offsetMs ?? 0)
  try {
    await startPlane(config, { log, lifecycle, now, random: randomBytes, reached: () => {} })
  } finally {
    await lifecycle.stop()
  }
}

t.test('a start that cannot work says why, and how to go on', async (t) => {
  const data = t.testdir()
  const service = await startEnrollment(t, { data })
  const { config } = service

  t.test('another service works in the directory', async (t) => {
    const other = { ...config, ports: (await freeConfig(data)).ports }
    await t.rejects(tryStart(other), {
      code: 'directory_in_use',
      message: /another enrollment service.*--data/,
    })
  })

  t.test('a port is taken', async (t) => {
    await service.stop()
    for (const port of Object.values(config.ports)) {
      const squatter = createServer()
      await new Promise<void>((resolve) => squatter.listen(port, '127.0.0.1', resolve))
      const message = new RegExp(`port ${port} is taken.*--port-base`)
      await t.rejects(tryStart(config), { code: 'port_taken', message })
      await new Promise((resolve) => squatter.close(resolve))
    }
    await t.resolves(tryStart(config), 'and what a failed start had opened is closed again')
  })

  t.test('the key of a CA is open to others', async (t) => {
    const key = join(config.layout.ca, 'device-ca.key')
    chmodSync(key, 0o640)
    await t.rejects(tryStart(config), { code: 'key_file_insecure', message: /chmod 600/ })
    chmodSync(key, 0o600)
  })

  t.test('the passphrase is gone, empty, or another one', async (t) => {
    const path = join(config.layout.ca, 'passphrase')
    const kept = readFileSync(path)
    const wrong = { ...config, passphrase: { from: 'text', text: 'another' } as const }
    await t.rejects(tryStart(wrong), { code: 'passphrase_wrong' })
    writeFileSync(path, '\n')
    await t.rejects(tryStart(config), { code: 'passphrase_wrong', message: /empty/ })
    rmSync(path)
    await t.rejects(tryStart(config), { code: 'passphrase_wrong', message: /MUSTER_CA_PASSPHRASE_FILE/ })
    const missing = { ...config, passphrase: { from: 'file', path: join(data, 'none') } as const }
    await t.rejects(tryStart(missing), { code: 'passphrase_wrong', message: /does not exist/ })
    writeFileSync(path, kept, { mode: 0o600 })
    await t.resolves(tryStart(config))
  })

  t.test('the trust domain is another one than in every certificate', async (t) => {
    await t.rejects(tryStart({ ...config, trustDomain: 'other.example' }), { code: 'config_invalid' })
    await t.resolves(tryStart({ ...config, trustDomain: 'muster.local' }))
  })

  t.test('the clock is before what was issued', async (t) => {
    await t.rejects(tryStart(config, { offsetMs: -2 * DAY_MS }), { code: 'clock_wrong' })
    await t.resolves(tryStart(config, { offsetMs: -60_000 }), 'a minute is what clocks do')
  })
})

t.test('secrets in the data directory are readable by their owner alone', async (t) => {
  const { config } = await startEnrollment(t)
  const { ca, enrollment, operator } = config.layout
  const secrets = ['passphrase', 'root.key', 'device-ca.key', 'infrastructure-ca.key'].map((name) =>
    join(ca, name),
  )
  secrets.push(
    join(enrollment, 'server.key'),
    join(enrollment, 'registry.db'),
    join(operator, 'operator.key'),
  )
  for (const path of secrets) t.equal(statSync(path).mode & 0o077, 0, path)
  for (const path of [ca, enrollment, operator]) t.equal(statSync(path).mode & 0o077, 0, path)
})

t.test('a start with the same directory goes on where it was', async (t) => {
  const data = t.testdir()
  const first = await startEnrollment(t, { data })
  const device = await enrollDevice(first, { id: 'press-1' })
  const pair = operatorPair(first)
  const before = await first.admin.status()
  await first.stop()
  const second = await startEnrollment(t, { data, hosts: ['muster.example'] })
  t.equal(second.root, first.root)
  t.same(operatorPair(second), pair, 'the operator keeps his certificate')
  const after = await second.admin.status()
  t.equal(after.cursor.epoch, before.cursor.epoch)
  t.equal(after.crl.url, before.crl.url, 'URLs in certificates do not change with ports and hosts')
  t.ok(after.crl.number > before.crl.number)
  t.equal((await second.client(device).send('POST', '/v1/renew', { json: { csr: device.csr } })).status, 200)
  const socket = connect({
    port: second.config.ports.enrollment,
    host: '127.0.0.1',
    ca: second.root,
    servername: 'muster.example',
  })
  await new Promise((resolve) => socket.once('secureConnect', resolve))
  t.match(
    socket.getPeerX509Certificate()?.subjectAltName,
    /DNS:muster\.example/,
    'a new host makes a new certificate',
  )
  socket.destroy()
})

t.test('the plane renews its own certificates, and open connections go on', async (t) => {
  const clock = { offsetMs: -21 * DAY_MS } // what it issues then is good now
  const service = await startEnrollment(t, { clock })
  const client = service.client()
  t.equal((await client.send('GET', '/healthz')).status, 200)
  const seen = async () => {
    const socket = connect({ port: service.config.ports.enrollment, host: '127.0.0.1', ca: service.root })
    await new Promise((resolve) => socket.once('secureConnect', resolve))
    const certificate = socket.getPeerX509Certificate()
    socket.destroy()
    return certificate?.fingerprint256
  }
  const [server, operator] = [await seen(), operatorPair(service)]
  await service.renewOwn()
  t.equal(await seen(), server, 'not before two thirds of its life')
  clock.offsetMs = 0
  await service.renewOwn()
  t.not(await seen(), server)
  t.not(operatorPair(service).certificate, operator.certificate)
  t.equal((await client.send('GET', '/healthz')).status, 200, 'on the connection from before')
  const old = new X509Certificate(operator.certificate)
  t.equal(
    (await service.adminClient(operator).send('GET', '/v1/status')).status,
    200,
    `${old.subject} serves until it expires`,
  )
})

t.test('nothing is signed once the clock has gone back', async (t) => {
  const clock = { offsetMs: 0 }
  const service = await startEnrollment(t, { clock })
  const { token } = await service.admin.createToken({ batch: 'lab', uses: 1 })
  const { csr } = await newRequest('press-2')
  clock.offsetMs = -2 * DAY_MS
  const reply = await service.client().send('POST', '/v1/enroll', { json: { token, csr } })
  t.match(reply, { status: 503, text: /clock_wrong/, headers: { 'retry-after': '5' } })
  for (const issuer of [service.deps.authority.device, service.deps.authority.infrastructure]) {
    await t.rejects(issuer.signer.sign(Buffer.from('a CRL')), { code: 'clock_wrong' }, 'nor anything else')
  }
  clock.offsetMs = 0
  t.equal((await service.client().send('POST', '/v1/enroll', { json: { token, csr } })).status, 200)
})

t.test('a clock that was a year ahead leaves no server certificate from the future', async (t) => {
  const data = t.testdir()
  for (const offsetMs of [0, 365 * DAY_MS])
    await (await startEnrollment(t, { data, clock: { offsetMs } })).stop()
  await t.rejects(startEnrollment(t, { data }), {
    code: 'clock_wrong',
    message: /the newest entry of the audit log is of .*--clock-is-right/,
  })
  const service = await startEnrollment(t, { data, clockIsRight: true })
  const server = new X509Certificate(readFileSync(join(service.config.layout.enrollment, 'server.crt')))
  t.ok(server.validFromDate.getTime() <= Date.now())
  t.ok(new X509Certificate(operatorPair(service).certificate).validFromDate.getTime() <= Date.now())
})

t.test('a clock that is years ahead is noticed at the start, before anything is done', async (t) => {
  const data = t.testdir()
  const first = await startEnrollment(t, { data })
  const { state } = await first.admin.startRollover()
  await first.stop()
  for (const days of [365, 6 * 365]) {
    await t.rejects(tryStart(first.config, { offsetMs: days * DAY_MS }), {
      code: 'clock_wrong',
      message: /the last that it did here was at .*, \d+ days before; fix: set the clock;.*--clock-is-right/,
    })
  }
  const after = await startEnrollment(t, { data })
  t.equal((await after.admin.rolloverStatus()).rollover?.state, state, 'no CA that has ended was followed')
  const { at } = (await after.deps.registry.listAudit(0, 1_000)).at(-1) ?? {}
  t.ok(Math.abs((at ?? 0) - Date.now()) < DAY_MS, 'nothing was written under that clock')
  await after.stop()
  await t.resolves(tryStart(first.config, { offsetMs: 89 * DAY_MS }), 'a machine may be off for a season')
})

t.test(
  'a service that was off for a year starts when its operator says that the clock is right',
  async (t) => {
    const { config, stop } = await startEnrollment(t)
    await stop()
    const later = { offsetMs: 365 * DAY_MS }
    await t.rejects(tryStart(config, later), { code: 'clock_wrong', message: /--clock-is-right/ })
    await t.resolves(tryStart({ ...config, clockIsRight: true }, later))
    await t.resolves(tryStart(config, later), 'once: it has written to its audit log')
  },
)

t.test('a clock that leaps ahead while the service runs signs, finalises and prunes nothing', async (t) => {
  const clock = { offsetMs: 0 }
  const service = await startEnrollment(t, { clock, mostIdleMs: 90 * DAY_MS })
  const { token } = await service.admin.createToken({
    batch: 'lab',
    uses: 2,
    expiresAt: Date.now() + 900 * DAY_MS,
  })
  const { csr } = await newRequest('press-3')
  await enrollDevice(service, { id: 'press-4' })
  const scope = { kind: 'device', id: 'press-4' } as const
  const revoking = { action: 'revoke', scope, reason: 'cessationOfOperation', undoMs: 900_000 } as const
  const plan = await service.admin.proposePlan(revoking)
  await service.admin.applyPlan(plan.id, plan.counts.devices)
  const entries = async () => (await service.deps.registry.listAudit(0, 1_000)).length
  const before = await entries()
  clock.offsetMs = 365 * DAY_MS
  const reply = await service.client().send('POST', '/v1/enroll', { json: { token, csr } })
  t.match(reply, { status: 503, text: /clock_wrong/, headers: { 'retry-after': '5' } })
  await t.rejects(service.renewOwn(), { code: 'clock_wrong' })
  await untilLogged(service, 'nothing is signed, finalised or pruned under this clock')
  t.equal(await entries(), before)
  clock.offsetMs = 0
  t.match(await service.admin.showPlan(plan.id), { state: 'applied' }, 'a revocation can still be undone')
  t.equal((await service.client().send('POST', '/v1/enroll', { json: { token, csr } })).status, 200)
})

/** Jobs look at the clock every second. */
async function untilLogged({ logged }: { logged: readonly string[] }, words: string): Promise<void> {
  while (!logged.some((line) => line.includes(words))) await new Promise(setImmediate)
}

import { type ChildProcess, spawn } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { openAdminClient, readOperatorProfile } from '#shared/admin-client'
import type { CertificateReply } from '#shared/api'
import { layout, ports } from '#shared/layout'
import { lockDirectory } from '#shared/sqlite'
import { openRegistry } from '../../enrollment/registry/open.ts'
import type { Registry } from '../../enrollment/registry/registry.ts'
import { newRequest, operatorPair, type Pair } from '../support/enrollment.ts'
import { openTestClient } from '../support/https.ts'

const MUSTER = join(import.meta.dirname, '..', '..', 'bin', 'muster.mjs')

/** A request, to the listener for devices unless it says otherwise. */
interface Cut {
  readonly listener?: 'admin' | 'enrollment'
  readonly path: string
  readonly json: object
  readonly pair?: Pair
}

/** The service as a process of its own, which a signal can end at any instruction. */
interface Service {
  readonly root: string
  send(request: Cut): Promise<{ status: number; text: string }>
  /** EST `serverkeygen` with a token, or the certificate of a pair. */
  askForKey(of: {
    token?: string
    pair?: Pair
    csr: Buffer
  }): Promise<{ status: number; text: string; rawHeaders: Readonly<Record<string, string>> }>
  readonly ended: Promise<NodeJS.Signals | null>
  stop(): Promise<void>
}

async function start(at: { data: string; portBase: number; crashAt?: string }): Promise<Service> {
  const args = ['--data', at.data, '--port-base', String(at.portBase), '--log-level', 'error']
  const env = { ...process.env, ...(at.crashAt ? { MUSTER_CRASH_AT: at.crashAt } : {}) }
  const child = spawn(process.execPath, [MUSTER, 'enrollment', ...args], {
    env,
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  const ended = exitOf(child)
  await readyOf(child)
  const root = readFileSync(layout(at.data).rootCertificate, 'utf8')
  return {
    root,
    ended,
    async send({ listener = 'enrollment', path, json, pair }) {
      const client = openTestClient({
        url: `https://localhost:${ports(at.portBase)[listener]}`,
        ca: root,
        ...pair,
      })
      return client.send('POST', path, { json }).finally(() => client.close())
    },
    async askForKey({ token, pair, csr }) {
      const url = `https://localhost:${ports(at.portBase).enrollment}`
      const client = openTestClient({ url, ca: root, ...pair })
      const authorization = `Basic ${Buffer.from(`:${token}`).toString('base64')}`
      const headers = { 'content-type': 'application/pkcs10', ...(token ? { authorization } : {}) }
      const body = csr.toString('base64')
      const path = '/.well-known/est/serverkeygen'
      return client.send('POST', path, { headers, body }).finally(() => client.close())
    },
    async stop() {
      child.kill('SIGTERM')
      await ended
    },
  }
}

function exitOf(child: ChildProcess): Promise<NodeJS.Signals | null> {
  return new Promise((resolve) => child.once('exit', (_code, signal) => resolve(signal)))
}

function readyOf(child: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    child.once('message', () => resolve())
    child.once('exit', (code) => reject(new Error(`the service ended with ${code} before it was ready`)))
  })
}

/** Of a plane that has stopped. */
async function registryIn(t: Test, data: string): Promise<Registry> {
  const registry = await openRegistry(join(layout(data).enrollment, 'registry.db'), {
    trustDomain: 'muster.local',
    epoch: 'unused',
    now: Date.now(),
  })
  t.teardown(() => registry.close())
  return registry
}

/** What docs/architecture.md promises after any crash, read from the file by this process. */
async function checkInvariants(t: Test, registry: Registry, held: readonly X509Certificate[]): Promise<void> {
  for (const certificate of held) {
    const serial = certificate.serialNumber.toLowerCase().padStart(32, '0')
    const found = await registry.findCredential({ serial })
    t.ok(found?.der.equals(certificate.raw), 'every certificate that a client holds is recorded, as it is')
  }
  t.equal(new Set(held.map(({ serialNumber }) => serialNumber)).size, held.length, 'no serial twice')
  const { devices } = await registry.listDevices({ limit: 1000, now: Date.now() })
  const tokens = await registry.listTokens({ now: Date.now() })
  const spent = tokens.reduce((sum, { used }) => sum + used, 0)
  t.equal(
    devices.filter(({ batch }) => batch !== null).length,
    spent,
    'every spent use has exactly one device',
  )
  t.equal(await registry.verifyAudit(), null, 'the audit chain is whole')
}

t.test('a power cut between any two steps of an issuance loses nothing', async (t) => {
  const data = join(t.testdir(), 'plane')
  const portBase = 12_000 + Math.floor(Math.random() * 9_000)
  const held: X509Certificate[] = []
  const keep = (reply: { text: string }): CertificateReply => {
    const issued: CertificateReply = JSON.parse(reply.text)
    held.push(new X509Certificate(issued.certificate))
    return issued
  }

  let service = await start({ data, portBase, crashAt: 'enroll.1' })
  const admin = openAdminClient(readOperatorProfile(layout(data).operatorProfile))
  const { token } = await admin.createToken({ batch: 'lab', uses: 4 })
  const firstNumber = (await admin.status()).crl.number
  await admin.close()

  /** Sends a request that the running service does not survive, and repeats it to the next one. */
  const cut = async (t: Test, { next, ...request }: Cut & { next: string | undefined }) => {
    await t.rejects(service.send(request))
    t.equal(await service.ended, 'SIGKILL')
    service = await start({ data, portBase, ...(next ? { crashAt: next } : {}) })
    const reply = await service.send(request)
    t.equal(reply.status, 200, reply.text)
    t.equal((await service.send(request)).text, reply.text, 'and once more, as after a lost reply')
    return keep(reply)
  }

  for (const step of [1, 2, 3, 4]) {
    t.test(`cut after step ${step}`, async (t) => {
      const first = await newRequest(`robot-${step}`)
      const enrollment = { path: '/v1/enroll', json: { token, csr: first.csr }, next: `renew.${step}` }
      const { certificate } = await cut(t, enrollment)
      const { csr } = await newRequest(`robot-${step}`)
      const pair = { key: first.key, certificate }
      await cut(t, { path: '/v1/renew', json: { csr }, pair, next: `service.${step}` })
      const json = { id: `reader-${step}`, csr: (await newRequest()).csr }
      const next = step < 4 ? `enroll.${step + 1}` : undefined
      await cut(t, {
        listener: 'admin',
        path: '/v1/services',
        json,
        pair: operatorPair({ whereabouts: layout(data) }),
        next,
      })
    })
  }

  t.test('and afterwards the registry is whole', async (t) => {
    t.equal(held.length, 12)
    const restarted = openAdminClient(readOperatorProfile(layout(data).operatorProfile))
    t.ok((await restarted.status()).crl.number > firstNumber, 'CRL numbers rise over every restart')
    await restarted.close()
    await service.stop()
    lockDirectory(join(layout(data).enrollment, 'lock.db')).release()
    const registry = await registryIn(t, data)
    await checkInvariants(t, registry, held)
    t.match(await registry.listTokens({ now: Date.now() }), [{ uses: 4, used: 4, state: 'spent' }])
  })
})

t.test('a key that was lost with the reply is replaced, on the same use of the token', async (t) => {
  const data = join(t.testdir(), 'plane')
  const portBase = 12_000 + Math.floor(Math.random() * 9_000)
  let service = await start({ data, portBase, crashAt: 'enroll.2' })
  const admin = openAdminClient(readOperatorProfile(layout(data).operatorProfile))
  await admin.createFleet({ id: 'kiosks', profile: { serverKeys: true } })
  await admin.createBatch({ id: 'kiosks-1', fleet: 'kiosks' })
  const { token } = await admin.createToken({ batch: 'kiosks-1', uses: 3 })
  await admin.close()

  const asked = new Map<number, Buffer>()
  for (const step of [2, 3, 4]) {
    const csr = (await newRequest(`kiosk-${step}`)).der
    asked.set(step, csr)
    await t.rejects(service.askForKey({ token, csr }), `cut after step ${step}`)
    t.equal(await service.ended, 'SIGKILL')
    service = await start({ data, portBase, ...(step < 4 ? { crashAt: `enroll.${step + 1}` } : {}) })
    if (step < 4) continue
    for (const late of [2, 3, 4]) {
      const again = asked.get(late) ?? Buffer.alloc(0)
      t.match(await service.askForKey({ token, csr: again }), { status: 200, text: /application\/pkcs8/ })
    }
  }
  await service.stop()

  const registry = await registryIn(t, data)
  for (const step of [2, 3, 4]) {
    const { state, certificates } = await registry.showDevice(`kiosk-${step}`, Date.now())
    t.equal(state, 'active')
    const lost = step === 4 ? [{ state: 'revoked', reason: 'superseded' }] : [] // before, nothing was recorded
    t.strictSame(
      certificates.map(({ state, reason }) => (reason ? { state, reason } : { state })),
      [{ state: 'issued' }, ...lost],
    )
  }
  await checkInvariants(t, registry, [])
  t.match(await registry.listTokens({ now: Date.now() }), [{ uses: 3, used: 3 }])
})

t.test(
  'a power cut while a claim is made leaves no claim that nobody has, and one that can be cancelled',
  async (t) => {
    const data = join(t.testdir(), 'plane')
    const portBase = 12_000 + Math.floor(Math.random() * 9_000)
    const operator = () => operatorPair({ whereabouts: layout(data) })
    const admin = () => openAdminClient(readOperatorProfile(layout(data).operatorProfile))
    let service = await start({ data, portBase, crashAt: 'claim.1' })
    for (const step of [1, 2, 3]) {
      const json = { batch: `line-${step}`, uses: 2, csr: (await newRequest()).csr }
      const making = service.send({ listener: 'admin', path: '/v1/claims', json, pair: operator() })
      await t.rejects(making, `cut after step ${step}`)
      t.equal(await service.ended, 'SIGKILL')
      service = await start({ data, portBase, ...(step < 3 ? { crashAt: `claim.${step + 1}` } : {}) })
      const client = admin()
      const [left] = await client.listTokens(`line-${step}`)
      t.match(left, { kind: 'claim', used: 0, state: step < 3 ? 'cancelled' : 'open' })
      if (step === 3) t.match(await client.cancelToken(left?.id ?? ''), { state: 'cancelled' })
      await client.close()
    }
    await service.stop()
    const registry = await registryIn(t, data)
    await checkInvariants(t, registry, [])
  },
)

t.test(
  'a power cut while a device enrolls by a claim loses nothing, with a key of its own or of the plane',
  async (t) => {
    const data = join(t.testdir(), 'plane')
    const portBase = 12_000 + Math.floor(Math.random() * 9_000)
    let service = await start({ data, portBase, crashAt: 'enroll.1' })
    const admin = openAdminClient(readOperatorProfile(layout(data).operatorProfile))
    await admin.createFleet({ id: 'kiosks', profile: { serverKeys: true } })
    await admin.createBatch({ id: 'kiosks-1', fleet: 'kiosks' })
    const { key, csr: request } = await newRequest()
    const { certificate } = await admin.createClaim({ batch: 'kiosks-1', uses: 8, csr: request })
    await admin.close()
    const pair = { key, certificate }
    const held: X509Certificate[] = []
    const requests = new Map<number, { csr: string; der: Buffer }>()
    for (const step of [1, 2, 3, 4]) {
      const [robot, kiosk] = [await newRequest(`robot-${step}`), await newRequest(`kiosk-${step}`)]
      requests.set(step, { csr: robot.csr, der: kiosk.der })
      await t.rejects(
        service.send({ path: '/v1/enroll', json: { csr: robot.csr }, pair }),
        `cut after step ${step}`,
      )
      t.equal(await service.ended, 'SIGKILL')
      service = await start({ data, portBase, crashAt: `enroll.${step}` })
      await t.rejects(
        service.askForKey({ csr: kiosk.der, pair }),
        `cut after step ${step}, with a key of the plane`,
      )
      t.equal(await service.ended, 'SIGKILL')
      service = await start({ data, portBase, ...(step < 4 ? { crashAt: `enroll.${step + 1}` } : {}) })
    }
    for (const { csr, der } of requests.values()) {
      const enroll = () => service.send({ path: '/v1/enroll', json: { csr }, pair })
      const reply = await enroll()
      t.equal(reply.status, 200, reply.text)
      t.equal((await enroll()).text, reply.text, 'and once more, as after a lost reply')
      held.push(new X509Certificate(JSON.parse(reply.text).certificate))
      t.match(await service.askForKey({ csr: der, pair }), { status: 200, text: /application\/pkcs8/ })
    }
    await service.stop()
    const registry = await registryIn(t, data)
    await checkInvariants(t, registry, held)
    t.match(await registry.listTokens({ now: Date.now() }), [
      { kind: 'claim', uses: 8, used: 8, state: 'spent' },
    ])
    for (const step of [1, 2, 3, 4]) {
      const { certificates } = await registry.showDevice(`kiosk-${step}`, Date.now())
      const lost = step === 4 ? ['issued', 'revoked'] : ['issued']
      t.strictSame(
        certificates.map(({ state }) => state),
        lost,
      )
    }
  },
)

/** Every state of a certificate, as the registry has it and as openssl reads it from OCSP and from the CRLs. */
import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import type { CertificateReply } from '#shared/api'
import { readCertificate } from '#shared/pki/certificate'
import { OID } from '#shared/pki/oid'
import { pemToDer } from '#shared/pki/pem'
import { readDistributionPoint } from '#shared/pki/read-extensions'
import {
  enrollBroker,
  enrollDevice,
  newRequest,
  type RunningEnrollment,
  startEnrollment,
} from '../support/enrollment.ts'
import { testIdentity } from '../support/pki.ts'

const run = promisify(execFile)
const HOUR_MS = 3_600_000
const POLL_MS = 20

/** stdout and stderr, whatever the exit code. */
async function openssl(...args: string[]): Promise<string> {
  const { stdout, stderr } = await run('openssl', args).catch((failed) => failed)
  return `${stdout}${stderr}`
}

interface Laid {
  readonly service: RunningEnrollment
  readonly path: (name: string) => string
  readonly issuer: string
  readonly trust: string
}

function lay(directory: string, service: RunningEnrollment): Laid {
  const path = (name: string) => join(directory, name)
  const { rootPem, device } = service.deps.authority
  writeFileSync(path('issuer.pem'), device.pem)
  writeFileSync(path('trust.pem'), device.pem + rootPem)
  return { service, path, issuer: path('issuer.pem'), trust: path('trust.pem') }
}

/** What `openssl ocsp` says, asked in each way that it can ask. */
async function askOcsp({ service, path, issuer, trust }: Laid, certificate: string): Promise<string[]> {
  writeFileSync(path('asked.pem'), certificate)
  const { http } = service.whereabouts
  const asked: string[] = []
  for (const options of [[], ['-no_nonce'], ['-sha256'], ['-sha256', '-no_nonce']]) {
    const said = await openssl(
      'ocsp',
      ...options.filter((option) => option !== '-no_nonce'), // before -cert, which it is for
      '-issuer',
      issuer,
      '-cert',
      path('asked.pem'),
      ...options.filter((option) => option === '-no_nonce'),
      '-url',
      `${http}/ocsp`,
      '-CAfile',
      trust,
    )
    const isVerified = /Response verify OK/.test(said) && !/times invalid|WARNING|Error/i.test(said)
    asked.push(isVerified ? summary(said) : said)
  }
  return asked
}

function summary(said: string): string {
  const status = /asked\.pem: (\w+)/.exec(said)?.[1] ?? said
  const reason = /Reason: (\w+)/.exec(said)?.[1]
  return reason === undefined ? status : `${status} ${reason}`
}

/** What `openssl verify -crl_check` says with the CRL that the certificate names, and with the full one. */
async function askCrl(
  { service, path, trust }: Laid,
  certificate: string,
  options: readonly string[] = [],
): Promise<string> {
  writeFileSync(path('asked.pem'), certificate)
  const point = readCertificate(pemToDer(certificate, 'CERTIFICATE')).tbs.extensions.get(
    OID.crlDistributionPoints,
  )
  if (point === undefined) return 'it names no CRL'
  const url = new URL(readDistributionPoint(point))
  const reply = await fetch(new URL(url.pathname, service.whereabouts.http))
  writeFileSync(path('shard.der'), await reply.bytes())
  await openssl('crl', '-inform', 'DER', '-in', path('shard.der'), '-out', path('shard.pem'))
  const signed = await openssl('crl', '-in', path('shard.pem'), '-noout', '-CAfile', trust)
  if (!/verify OK/.test(signed)) return signed
  const said = await openssl(
    'verify',
    '-crl_check',
    ...options,
    '-CAfile',
    trust,
    '-CRLfile',
    path('shard.pem'),
    path('asked.pem'),
  )
  if (/certificate revoked/.test(said)) return 'revoked'
  return /: OK/.test(said) ? 'good' : said
}

async function same(t: Test, asked: Promise<string[]>, wanted: string): Promise<void> {
  t.same(await asked, [wanted, wanted, wanted, wanted])
}

async function stop(
  { service }: Laid,
  of: { device: string; action: 'hold' | 'revoke'; reason?: 'keyCompromise' | 'superseded' },
): Promise<string> {
  const { device: id, action, reason = 'keyCompromise' } = of
  const scope = { kind: 'device', id } as const
  const plan = await service.admin.proposePlan({
    action,
    scope,
    reason,
    ...(action === 'revoke' ? { undoMs: 0 } : {}),
  })
  await service.admin.applyPlan(plan.id, 1)
  return plan.id
}

/** Until the revocation is final, and the lists say so. */
async function listed({ service }: Laid, serial: string): Promise<void> {
  const { registry, revocationLists, authority } = service.deps
  const deadline = Date.now() + 20_000
  while ((await registry.revocationStatus(authority.device.id, serial))?.state !== 'revoked') {
    if (Date.now() > deadline) throw new Error('not revoked in 20 s')
    await setTimeout(POLL_MS)
  }
  while (!revocationLists.current.published?.der.includes(Buffer.from(serial, 'hex'))) {
    if (Date.now() > deadline) throw new Error('not listed in 20 s')
    await setTimeout(POLL_MS)
  }
}

/** A successor that a broker has seen, so that the first certificate is superseded. */
async function supersede(service: RunningEnrollment, id: string): Promise<{ old: string; current: string }> {
  const device = await enrollDevice(service, { id })
  const { csr } = await newRequest(id)
  const client = service.client(device)
  const { certificate, serial }: CertificateReply = JSON.parse(
    (await client.send('POST', '/v1/renew', { json: { csr } })).text,
  )
  client.close()
  const { registry, now } = service.deps
  const successor = await registry.findCredential({ serial })
  const sighting = {
    type: 'connected',
    at: now(),
    fingerprint: successor?.certificate.fingerprint ?? '',
    device: id,
    address: '192.0.2.1',
    connection: 'c1',
    resumed: false,
  } as const
  const batch = { boot: id, sequence: 1, at: now(), applied: null, sessions: 1, url: 'mqtts://edge-1:8883' }
  await registry.applyReports('edge-1', { ...batch, reports: [sighting] }, 0, now())
  await registry.supersedeDue(now() + 1, 10)
  const old = await registry.findCredential({ fingerprint: device.fingerprint })
  if (old?.certificate.state !== 'superseded') throw new Error(`${id} is ${old?.certificate.state}`)
  return { old: device.certificate, current: certificate }
}

t.test('openssl agrees with the registry', async (t) => {
  const clock = { offsetMs: -3 * HOUR_MS }
  const directory = t.testdir({ data: {}, openssl: {} })
  const service = await startEnrollment(t, { clock, data: join(directory, 'data') })
  const laid = lay(join(directory, 'openssl'), service)
  await enrollBroker(service, 'edge-1')
  await service.admin.createFleet({ id: 'short', lifetimeMs: HOUR_MS })
  await service.admin.createBatch({ id: 'short-1', fleet: 'short' })
  const expired = await enrollDevice(service, { id: 'expired-1', batch: 'short-1' })
  const expiredRevoked = await enrollDevice(service, { id: 'expired-2', batch: 'short-1' })
  await stop(laid, { device: 'expired-2', action: 'revoke' })
  clock.offsetMs = 0

  // before anybody else is revoked: an entry that has expired goes from its shard with the next list of that
  t.test('expired, while it is recorded', async (t) => {
    await same(t, askOcsp(laid, expired.certificate), 'good')
    t.equal(await askCrl(laid, expired.certificate, ['-no_check_time']), 'good')
    await listed(laid, expiredRevoked.serial)
    await same(t, askOcsp(laid, expiredRevoked.certificate), 'revoked keyCompromise')
    t.equal(await askCrl(laid, expiredRevoked.certificate, ['-no_check_time']), 'revoked')
  })

  t.test('good', async (t) => {
    const { certificate } = await enrollDevice(service, { id: 'good-1' })
    await same(t, askOcsp(laid, certificate), 'good')
    t.equal(await askCrl(laid, certificate), 'good')
  })

  t.test('held, and released', async (t) => {
    const { certificate } = await enrollDevice(service, { id: 'held-1' })
    await same(t, askOcsp(laid, certificate), 'good')
    const plan = await stop(laid, { device: 'held-1', action: 'hold' })
    await same(t, askOcsp(laid, certificate), 'revoked certificateHold')
    t.equal(await askCrl(laid, certificate), 'good', 'a hold is on no CRL')
    await service.admin.undoPlan(plan)
    await same(t, askOcsp(laid, certificate), 'good')
  })

  t.test('revoked', async (t) => {
    const { certificate, serial } = await enrollDevice(service, { id: 'bad-1' })
    await stop(laid, { device: 'bad-1', action: 'revoke' })
    await listed(laid, serial)
    await same(t, askOcsp(laid, certificate), 'revoked keyCompromise')
    t.equal(await askCrl(laid, certificate), 'revoked')
  })

  t.test('superseded is an admission state: good', async (t) => {
    const { old, current } = await supersede(service, 'rotated-1')
    for (const certificate of [old, current]) {
      await same(t, askOcsp(laid, certificate), 'good')
      t.equal(await askCrl(laid, certificate), 'good')
    }
  })

  t.test('revoked because it was superseded', async (t) => {
    const { old } = await supersede(service, 'rotated-2')
    await stop(laid, { device: 'rotated-2', action: 'revoke', reason: 'superseded' })
    await listed(laid, readCertificate(pemToDer(old, 'CERTIFICATE')).tbs.serial.toString('hex'))
    await same(t, askOcsp(laid, old), 'revoked superseded')
    t.equal(await askCrl(laid, old), 'revoked')
  })

  t.test('unknown: signed by the CA, and not recorded', async (t) => {
    const { pem } = await testIdentity(service.deps.authority, 'ghost-1')
    await same(t, askOcsp(laid, pem), 'unknown')
  })

  t.test('of another issuer: nobody answers for it', async (t) => {
    const { rootPem, infrastructure } = service.deps.authority
    const server = await testIdentity(service.deps.authority, 'x', { kind: 'server' })
    const ca = laid.path('other.pem')
    writeFileSync(ca, infrastructure.pem)
    writeFileSync(laid.path('asked.pem'), server.pem)
    writeFileSync(laid.path('root.pem'), rootPem)
    const url = `${service.whereabouts.http}/ocsp`
    t.match(
      await openssl(
        'ocsp',
        '-issuer',
        ca,
        '-cert',
        laid.path('asked.pem'),
        '-url',
        url,
        '-CAfile',
        laid.trust,
      ),
      /unauthorized \(6\)/,
    )
  })

  t.test('a certificate from before there were shards is checked with the full CRL', async (t) => {
    const { authority, registry } = service.deps
    const { trustDomain, rootId, rootPem, created, infrastructure } = authority
    const device = { ...authority.device, crlShards: 0, ocspUrl: null }
    const whole = { trustDomain, rootId, rootPem, created, infrastructure, device }
    const { pem, serial } = await testIdentity(whole, 'veteran-1')
    t.equal(await askCrl(laid, pem), 'good')
    t.equal(await registry.revocationStatus(authority.device.id, serial), null)
  })
})

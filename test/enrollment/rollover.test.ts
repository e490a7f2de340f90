import { X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import t from 'tap'
import type { CaReply, CertificateReply } from '#shared/api'
import {
  enrollDevice,
  newRequest,
  operatorPair,
  type Pair,
  type RunningEnrollment,
  startEnrollment,
} from '../support/enrollment.ts'
import { openTestClient } from '../support/https.ts'

const DAY_MS = 86_400_000

async function fetchBundle(service: RunningEnrollment, pair?: Pair): Promise<CaReply> {
  const reply = await service.client(pair).send('GET', '/v1/ca')
  return JSON.parse(reply.text)
}

async function renew(
  service: RunningEnrollment,
  device: Pair & { id: string },
): Promise<CertificateReply & Pair> {
  const { key, csr } = await newRequest(device.id)
  const reply = await service.client(device).send('POST', '/v1/renew', { json: { csr } })
  if (reply.status !== 200) throw new Error(`renewal answered ${reply.status}: ${reply.text}`)
  return { key, ...JSON.parse(reply.text) }
}

/** True when a device that trusts only these roots reaches the service with its certificate. */
async function reaches(
  service: RunningEnrollment,
  as: { ca: string; pair: Pair; csr: string },
): Promise<boolean> {
  const client = openTestClient({ url: service.whereabouts.enrollment, ca: as.ca, ...as.pair })
  const reply = await client.send('POST', '/v1/renew', { json: { csr: as.csr } }).catch(() => null)
  client.close()
  return reply?.status === 200
}

t.test('a new device CA takes over from the old one, and no device is lost', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service
  const one = await enrollDevice(service, { id: 'pump-1' })
  const two = await enrollDevice(service, { id: 'pump-2' })
  t.match(await admin.showCas(), {
    bundleVersion: 1,
    cas: [{ role: 'root' }, { role: 'device' }, { role: 'infrastructure' }],
  })
  t.match(await admin.rolloverStatus(), { bundleVersion: 1, rollover: null })
  await t.rejects(admin.cutOverRollover(), { code: 'conflict' }, 'nothing is under way')

  const { id, from, to } = await admin.startRollover()
  t.equal((await admin.startRollover()).id, id, 'asked again, because the reply was lost: the same')
  await t.rejects(admin.startRollover({ root: true }), { code: 'conflict' }, 'another one')
  await t.rejects(admin.startRollover({ lifetimeMs: DAY_MS }), { code: 'conflict' })
  t.equal(from.root, to.root)
  t.match(await admin.rolloverStatus(), {
    adoption: { devices: 2, adopted: 0, waiting: ['pump-1', 'pump-2'] },
  })
  await fetchBundle(service)
  t.match(await admin.rolloverStatus(), { adoption: { adopted: 0 } }, 'who shows no certificate is nobody')
  t.match(await fetchBundle(service, one), { version: 2 })
  await t.rejects(admin.cutOverRollover(), { code: 'conflict', message: /1 of 2 devices .* missing: pump-2/ })
  t.match(await renew(service, two), { trustVersion: 2 }, 'a renewal tells of the new bundle')
  await service.client(two).send('GET', '/.well-known/est/cacerts')
  t.match(
    await admin.rolloverStatus(),
    { adoption: { devices: 2, adopted: 2, waiting: [] } },
    'EST counts as well',
  )
  await admin.cutOverRollover()

  const next = await renew(service, one)
  t.ok(new X509Certificate(next.certificate).verify(new X509Certificate(next.chain[0] ?? '').publicKey))
  const issuers = (await admin.showDevice('pump-1')).certificates.map(({ issuer }) => issuer)
  t.strictSame(new Set(issuers), new Set([from.device, to.device]))
  t.match(
    await renew(service, { ...next, id: 'pump-1' }),
    { device: 'pump-1' },
    'the new certificate opens the door',
  )
  await t.rejects(admin.finishRollover(), { code: 'conflict' }, 'certificates of the old CA are good')
  const crls = await Promise.all(
    [from.device, to.device].map((id) => fetch(`${service.whereabouts.http}/crl/${id}.crl`)),
  )
  t.same(
    crls.map(({ status }) => status),
    [200, 200],
    'both CAs have their lists',
  )
  const ca = await fetch(`${service.whereabouts.http}/ca/${to.device}.crt`)
  t.equal(ca.status, 200)
  const audit = (await admin.listAudit({ limit: 1000 })).map(({ action, by }) => `${action} ${by}`)
  t.ok(audit.includes('rollover.start operator:local'))
  t.ok(audit.includes('rollover.cut-over operator:local'))
})

t.test('a new root takes over: who trusts one of the two roots finds the way to the other', async (t) => {
  const clock = { offsetMs: 0 }
  const service = await startEnrollment(t, { clock })
  const { admin } = service
  const asleep = await enrollDevice(service, { id: 'asleep' })
  const awake = await enrollDevice(service, { id: 'awake' })
  // always the same, so that the certificate for it is too
  const [sleepers, wakers] = [(await newRequest()).csr, (await newRequest()).csr]
  const oldRoot = (await fetchBundle(service)).root
  await admin.startRollover({ root: true })
  const bundle = await fetchBundle(service, awake)
  t.equal(bundle.roots.length, 2)
  t.equal(bundle.root, oldRoot, 'the old one still signs')
  const newRoot = bundle.roots[1] ?? ''
  t.equal(new X509Certificate(newRoot).subject, new X509Certificate(oldRoot).subject)
  const est = await service.client().send('GET', '/.well-known/est/cacerts')
  t.equal(est.status, 200)
  await admin.cutOverRollover({ threshold: 0.5 })

  const { certificate } = operatorPair(service)
  t.ok(new X509Certificate(certificate).checkIssued(new X509Certificate(infrastructure(bundle, newRoot))))
  t.ok(
    await reaches(service, { ca: oldRoot, pair: asleep, csr: sleepers }),
    'a device that knows the old root only',
  )
  t.ok(
    await reaches(service, { ca: newRoot, pair: asleep, csr: sleepers }),
    'and one that knows the new root only',
  )
  const client = openTestClient({ url: service.whereabouts.enrollment, ca: oldRoot, ...awake })
  const { key, csr } = await newRequest('awake')
  const reply = await client.send('POST', '/v1/renew', { json: { csr } })
  client.close()
  const next = { key, certificate: JSON.parse(reply.text).certificate }
  t.ok(await reaches(service, { ca: oldRoot, pair: next, csr: wakers }), 'a certificate below the new root')
  await t.rejects(admin.finishRollover(), { code: 'conflict', message: /before/ })
  const old = await admin.abortRollover()
  t.equal(old.state, 'aborting')
  t.ok(await reaches(service, { ca: oldRoot, pair: next, csr: wakers }), 'after the abort it is still good')
  t.match(await renew(service, { ...next, id: 'awake' }), { device: 'awake' })
  t.equal(readFileSync(service.whereabouts.caFile, 'utf8'), oldRoot)
})

/** The infrastructure CA in the bundle that this root has signed. */
function infrastructure({ certificates }: CaReply, root: string): string {
  const found = certificates.find((pem) => {
    const ca = new X509Certificate(pem)
    return ca.subject.includes('infrastructure') && ca.verify(new X509Certificate(root).publicKey)
  })
  if (!found) throw new Error('no infrastructure CA of the new root in the bundle')
  return found
}

t.test('what is no request for a rollover starts none', async (t) => {
  const service = await startEnrollment(t)
  const client = service.adminClient(operatorPair(service))
  const bodies = [{ root: 'yes' }, { lifetimeMs: -1 }, { lifetimeMs: 1e300 }, { __proto__: 1, x: 1 }, [], 'x']
  for (const json of bodies) t.equal((await client.send('POST', '/v1/ca/rollover', { json })).status, 400)
  for (const threshold of [-0.1, 1.1, '99%', null]) {
    t.equal((await client.send('POST', '/v1/ca/rollover/cut-over', { json: { threshold } })).status, 400)
  }
  for (const step of ['cut-over', 'abort', 'finish']) {
    t.equal((await client.send('POST', `/v1/ca/rollover/${step}`, { json: {} })).status, 409)
  }
  t.match(await service.admin.rolloverStatus(), { rollover: null })
})

t.test('alarms begin 90, 30 and 7 days before a CA ends', async (t) => {
  const clock = { offsetMs: 0 }
  const service = await startEnrollment(t, { clock })
  const { deps } = service
  const end = deps.authority.device.notAfter
  const { caAlarms } = await import('../../enrollment/trust.ts')
  const at = (days: number) => caAlarms(deps.authority.cas, end - days * DAY_MS)
  t.same(at(91), [])
  for (const days of [90, 30, 7] as const) {
    t.match(at(days), [
      { name: 'device CA', withinDays: days },
      { name: 'infrastructure CA', withinDays: days },
    ])
  }
  t.match(at(-1), [{ withinDays: 0 }, { withinDays: 0 }])
})

import { X509Certificate } from 'node:crypto'
import t, { type Test } from 'tap'
import { type AdminClient, openAdminClient, readOperatorProfile } from '#shared/admin-client'
import { derToPem } from '#shared/pki/pem'
import { parseToken } from '#shared/token'
import { enroll } from '../../enrollment/enroll.ts'
import { renew } from '../../enrollment/renew.ts'
import { createToken } from '../../enrollment/tokens.ts'
import { newRequest, type Pair, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { scratch } from '../support/muster.ts'

const DAY_MS = 86_400_000
const NO_CHANNEL = { tlsUnique: null, why: 'no connection' } as const
const LIFE_MS = 30 * DAY_MS

/**
 * A plane whose devices enrolled so long ago that OpenSSL too finds their certificates expired; then no listener can
 * be reached with the plane's own, so the use cases are called without them.
 */
interface Drawer {
  readonly service: RunningEnrollment
  enroll(id: string, batch?: string): Promise<Pair & { id: string }>
  /** The clock is right again, and the plane has renewed its own certificates. */
  open(): Promise<AdminClient>
  renew(device: Pair & { id: string }, csr?: string): Promise<{ status: number; text: string }>
  readonly clock: { offsetMs: number }
}

async function drawer(t: Test, agoMs: number): Promise<Drawer> {
  const clock = { offsetMs: -agoMs }
  const service = await startEnrollment(t, { clock, data: scratch(t) })
  const { deps } = service
  const act = { now: deps.now(), by: 'operator:test' }
  await deps.registry.createFleet({ id: 'patient', profile: { graceMs: 10 * DAY_MS } }, act)
  await deps.registry.createBatch({ id: 'patient', fleet: 'patient' }, act)
  return {
    service,
    clock,
    async enroll(id, batch = 'patient') {
      const { token } = await createToken(deps, { batch, uses: 1, by: 'operator:test' })
      const { der, key } = await newRequest(id)
      const tokenHash = parseToken(token)?.hash ?? ''
      const enrolled = await enroll(deps, { tokenHash, csr: der, label: null, channel: NO_CHANNEL })
      if ('waitsFor' in enrolled) throw new Error(`${id} waits`)
      return { id, key, certificate: derToPem(enrolled.certificate, 'CERTIFICATE') }
    },
    async open() {
      clock.offsetMs = 0
      await service.renewOwn()
      const admin = openAdminClient(readOperatorProfile(service.whereabouts.operatorProfile))
      t.teardown(() => admin.close())
      return admin
    },
    async renew(device, csr) {
      const json = { csr: csr ?? (await newRequest(device.id)).csr }
      return service.client(device).send('POST', '/v1/renew', { json })
    },
  }
}

t.test('a certificate that has expired is renewed within the grace time of its fleet', async (t) => {
  const { service, enroll, open, renew } = await drawer(t, LIFE_MS + 5 * DAY_MS)
  const [late, est, strict] = [await enroll('late'), await enroll('est'), await enroll('strict', 'other')]
  const admin = await open()
  t.match(await renew(strict), { status: 403, text: /R-EXPIRED/ }, 'a fleet without grace')
  t.equal((await renew(late, (await newRequest('est')).csr)).status, 422, 'for its own name alone')

  const { csr } = await newRequest('late')
  const renewed = await renew(late, csr)
  t.equal(renewed.status, 200, renewed.text)
  t.equal((await renew(late, csr)).text, renewed.text, 'a lost reply costs nothing')
  t.match(await renew(late), { status: 403, text: /R-EXPIRED/ }, 'it is no longer the newest')
  t.match(await service.client(late).send('GET', '/v1/renewal'), { status: 403, text: /R-EXPIRED/ })

  const { der } = await newRequest('est', ['spiffe://muster.local/device/est'])
  const headers = { 'content-type': 'application/pkcs10' }
  const body = der.toString('base64')
  const reply = await service.client(est).send('POST', '/.well-known/est/simplereenroll', { headers, body })
  t.equal(reply.status, 200, reply.text)
  const audit = (await admin.listAudit({ limit: 1000 })).map(({ action, subject }) => `${action} ${subject}`)
  for (const id of ['late', 'est'])
    t.ok(
      audit.some((line) => line.startsWith(`rekey.expired device:${id} certificate:`)),
      `${id} is in the audit log`,
    )
})

t.test('after the grace time it is over', async (t) => {
  const { enroll, open, renew } = await drawer(t, LIFE_MS + 10 * DAY_MS + 60_000)
  const device = await enroll('too-late')
  await open()
  t.match(await renew(device), { status: 403, text: /R-EXPIRED/ })
})

t.test('only the newest certificate of an active device under no hold', async (t) => {
  const { service, enroll, open, renew: renewNow } = await drawer(t, LIFE_MS + DAY_MS)
  const ids = ['held', 'revoked', 'retired', 'renewed', 'fine'] as const
  const [held, revoked, retired, renewed, fine] = [
    await enroll(ids[0]),
    await enroll(ids[1]),
    await enroll(ids[2]),
    await enroll(ids[3]),
    await enroll(ids[4]),
  ]
  const { registry } = service.deps
  const fingerprint = new X509Certificate(renewed.certificate).fingerprint256
    .replaceAll(':', '')
    .toLowerCase()
  const presented = await registry.findCredential({ fingerprint })
  if (!presented) throw new Error('not recorded')
  await renew(service.deps, {
    presented,
    csr: (await newRequest('renewed')).der,
    names: 'optional',
    channel: NO_CHANNEL,
  })

  const admin = await open()
  const stop = async (action: 'hold' | 'revoke', id: string) => {
    const plan = await admin.proposePlan({ action, scope: { kind: 'device', id }, undoMs: 0 })
    await admin.applyPlan(plan.id, plan.counts.devices)
  }
  await stop('hold', 'held')
  await stop('revoke', 'revoked')
  await admin.retireDevice('retired')
  t.match(await renewNow(held), { status: 403, text: /R-HELD/ })
  t.match(await renewNow(revoked), { status: 403, text: /R-(REVOKED|HELD)/ })
  t.match(await renewNow(retired), { status: 403, text: /R-EXPIRED/ })
  t.match(await renewNow(renewed), { status: 403, text: /R-EXPIRED/ }, 'there is a newer one')
  t.equal((await renewNow(fine)).status, 200)
})

/** The life of a few devices in requests that may be repeated: what the tests of faults let the service do. */
import { type AdminClient, openAdminClient, readOperatorProfile } from '#shared/admin-client'
import type { CertificateReply } from '#shared/api'
import { layout } from '#shared/layout'
import { newRequest } from './enrollment.ts'
import type { ServingEnrollment } from './enrollment-process.ts'
import type { Told } from './registry-invariants.ts'

/** The requests of two devices, and the token as soon as it is known. */
export interface Life {
  readonly told: Told
  readonly devices: readonly { readonly id: string; readonly key: string; readonly csr: string }[]
  readonly renewal: { readonly csr: string }
  token: string | null
}

export async function newLife(told: Told): Promise<Life> {
  const devices = await Promise.all(
    ['life-1', 'life-2'].map(async (id) => ({ id, ...(await newRequest(id)) })),
  )
  return { told, devices, renewal: await newRequest('life-1'), token: null }
}

/**
 * Enrolls both, renews the first, revokes the second for good, and waits for the CRL that says so. Begun again after
 * any fault it goes on where it was. @throws when the service does not answer with what was asked for
 */
export async function liveThrough(service: ServingEnrollment, life: Life): Promise<void> {
  const { told, devices } = life
  const plans = await service.admin.listPlans()
  if (plans.length === 0) {
    life.token ??= (await service.admin.createToken({ batch: 'lab', uses: devices.length })).token
    for (const { id, key, csr } of devices) {
      const json = { token: life.token, csr }
      const certificate = await ask(service, { told, path: '/v1/enroll', json })
      if (id !== 'life-1') continue
      await ask(service, { told, path: '/v1/renew', json: life.renewal, pair: { key, certificate } })
    }
  }
  await revoke(service.admin, { told, device: 'life-2' })
}

async function ask(
  service: ServingEnrollment,
  {
    told,
    path,
    json,
    pair,
  }: { told: Told; path: string; json: object; pair?: { key: string; certificate: string } },
): Promise<string> {
  const client = service.client(pair)
  const reply = await client.send('POST', path, { json }).finally(() => client.close())
  if (reply.status !== 200) throw new Error(`${path} answered ${reply.status}: ${reply.text}`)
  const { serial, certificate }: CertificateReply = JSON.parse(reply.text)
  told.certificates.set(serial, certificate)
  return certificate
}

async function revoke(admin: AdminClient, { told, device }: { told: Told; device: string }): Promise<void> {
  const before = await admin.listPlans()
  const plan = before[0] ?? (await admin.proposePlan({ action: 'revoke', devices: [device], undoMs: 0 }))
  await admin.applyPlan(plan.id, plan.counts.devices)
  told.applied.add(plan.id)
  while ((await admin.showPlan(plan.id)).state !== 'final') await new Promise((done) => setTimeout(done, 20))
  told.revoked.add(device)
}

/** Reads that need no write: they must be answered whatever the disk does. */
export async function readStatus(data: string): Promise<unknown> {
  const admin = openAdminClient(readOperatorProfile(layout(data).operatorProfile))
  return admin.status().finally(() => admin.close())
}

/** Devices that enroll as devices do: each repeats the same request until it has its certificate. */
import { type AdminClient, openAdminClient, readOperatorProfile } from '#shared/admin-client'
import type { CertificateReply } from '#shared/api'
import { isMusterError } from '#shared/errors'
import { layout, ports } from '#shared/layout'
import { newRequest, type Pair } from './enrollment.ts'
import { openTestClient, type TestClient } from './https.ts'
import type { Told } from './registry-invariants.ts'

export interface LoadOptions {
  readonly data: string
  readonly portBase: number
  readonly root: string
  readonly devices: number
  /** Devices that have a request under way at a time. */
  readonly inFlight: number
  readonly token: string
  readonly told: Told
  readonly random: () => number
}

/** How it goes: `done` rises; `faults` says what a device must not be told. */
export interface Load {
  readonly progress: { enrolled: number; renewed: number; plans: number; repeats: number }
  readonly faults: string[]
  /** Resolves when that many are enrolled. */
  until(enrolled: number): Promise<void>
  readonly ended: Promise<void>
}

/** Every tenth device renews, every thirtieth is held or revoked. */
const RENEWS = 10
const PLANS = 30

const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms))

export function startLoad(options: LoadOptions): Load {
  const progress = { enrolled: 0, renewed: 0, plans: 0, repeats: 0 }
  const faults: string[] = []
  const waiting: { readonly at: number; resolve(): void }[] = []
  const at = { ...options, progress, faults, url: `https://localhost:${ports(options.portBase).enrollment}` }
  const admin = openAdminClient(readOperatorProfile(layout(options.data).operatorProfile))
  let next = 0
  const work = async () => {
    const client = openTestClient({ url: at.url, ca: at.root })
    try {
      while (next < options.devices) {
        const id = `kill-${String(next++).padStart(5, '0')}`
        await live({ ...at, admin, client }, id)
        for (const { resolve } of waiting.filter((one) => one.at <= progress.enrolled)) resolve()
      }
    } finally {
      client.close()
    }
  }
  const ended = Promise.all(Array.from({ length: options.inFlight }, work))
    .then(() => {})
    .finally(() => admin.close())
  const until = (enrolled: number) =>
    progress.enrolled >= enrolled
      ? Promise.resolve()
      : Promise.race([ended, new Promise<void>((resolve) => void waiting.push({ at: enrolled, resolve }))])
  return { progress, faults, ended, until }
}

type At = LoadOptions &
  Pick<Load, 'progress' | 'faults'> & { admin: AdminClient; client: TestClient; url: string }

async function live(at: At, id: string): Promise<void> {
  const { key, csr } = await newRequest(id)
  const certificate = await ask(at, { client: at.client, path: '/v1/enroll', json: { token: at.token, csr } })
  if (certificate === null) return
  const number = ++at.progress.enrolled
  if (number % RENEWS === 0) await renew(at, { id, pair: { key, certificate } })
  if (number % PLANS === 0) await plan(at, id)
}

async function renew(at: At, { id, pair }: { id: string; pair: Pair }): Promise<void> {
  const { csr } = await newRequest(id)
  const client = openTestClient({ url: at.url, ca: at.root, ...pair })
  if ((await ask(at, { client, path: '/v1/renew', json: { csr } })) !== null) at.progress.renewed += 1
  client.close()
}

/** The same request until it is answered; null when the answer is no, which is a fault. */
async function ask(
  at: At,
  { client, path, json }: { client: TestClient; path: string; json: object },
): Promise<string | null> {
  for (;;) {
    const reply = await client.send('POST', path, { json }).catch(() => null)
    if (reply?.status === 200) {
      const { serial, certificate }: CertificateReply = JSON.parse(reply.text)
      at.told.certificates.set(serial, certificate)
      return certificate
    }
    if (reply !== null && (reply.status !== 503 || reply.headers['retry-after'] === undefined)) {
      at.faults.push(`${path} answered ${reply.status}: ${reply.text}`)
      return null
    }
    at.progress.repeats += 1
    await pause(20 + at.random() * 180)
  }
}

/** Holds, holds and releases, or revokes for good. */
async function plan(at: At, device: string): Promise<void> {
  const kind = ['hold', 'release', 'revoke'][at.progress.plans++ % 3]
  const action = kind === 'revoke' ? 'revoke' : 'hold'
  const undo = kind === 'revoke' ? { undoMs: 0 } : {}
  const propose = () => at.admin.proposePlan({ action, devices: [device], ...undo })
  const { id, counts } = await repeat(at, propose)
  await repeat(at, () => at.admin.applyPlan(id, counts.devices))
  at.told.applied.add(id)
  if (kind === 'release') await repeat(at, () => at.admin.undoPlan(id))
  if (kind !== 'revoke') return
  while ((await repeat(at, () => at.admin.showPlan(id))).state !== 'final') await pause(50)
  at.told.revoked.add(device)
}

async function repeat<T>(at: At, work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await work()
    } catch (error) {
      if (!isMusterError(error, 'unreachable', 'unavailable')) throw error
      at.progress.repeats += 1
      await pause(20 + at.random() * 180)
    }
  }
}

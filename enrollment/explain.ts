import type { CertificateView, CloneAlarm, DeviceDetail, Explanation, RefusalView } from '#shared/api'
import { isMusterError, MusterError } from '#shared/errors'
import { isRefusalCode, REFUSALS, type RefusalCode } from '#shared/refusals'
import type { SecondFactor } from '#shared/second-factor'
import type { Deps } from './deps.ts'
import { type Case, type Finding, STEPS } from './explain-steps.ts'

/** So long an alarm is told, ms. */
const CLONE_SHOWN_MS = 7 * 86_400_000

/**
 * Walks from TCP to policy as admission does, and names the first thing that stops the device.
 * @param subject a device id, a serial, a fingerprint (hex, colons allowed) or an address
 * @throws MusterError not_found when nothing at all is known about it
 */
export async function explain(deps: Deps, subject: string): Promise<Explanation> {
  const known = await investigate(deps, subject)
  if (!known.device && !known.certificate && known.refusals.length === 0) {
    throw new MusterError(
      'not_found',
      `Cannot explain "${subject}": it is no device, serial, fingerprint or address that was ever seen`,
    )
  }
  const findings = STEPS.map((step) => step(known))
  const cause = findings.find((finding) => finding.verdict === 'refused') ?? strangerCause(known)
  const device = known.device?.id ?? null
  const [hold] = known.device?.holds ?? []
  return {
    subject,
    device,
    verdict: cause ? 'refused' : known.certificate ? 'admitted' : 'unknown',
    code: cause?.code ?? null,
    text: cause ? cause.says : known.certificate ? 'Nothing stops it.' : 'Nothing is recorded about it.',
    fix: cause?.code
      ? fixOf(cause.code, { device: device ?? known.refusals[0]?.device, hold: hold?.id })
      : null,
    steps: findings.map(({ step, verdict, says }) => ({ step, verdict, says })),
    lastRefusals: [...known.refusals],
    remedies: remedies(known.refusals),
  }
}

/** What each code among the refusals means and what to do, of the newest refusal with it. */
function remedies(refusals: readonly RefusalView[]): Explanation['remedies'] {
  const newest = new Map<RefusalCode, RefusalView>()
  for (const refusal of refusals)
    if (isRefusalCode(refusal.code) && !newest.has(refusal.code)) newest.set(refusal.code, refusal)
  return [...newest].map(([code, { device, evidence }]) => {
    const hold = typeof evidence.hold === 'string' ? evidence.hold : undefined
    return { code, text: REFUSALS[code].text, fix: fixOf(code, { device, hold }) }
  })
}

/** The fix of the table, with what is known in the places of its blanks. */
function fixOf(
  code: RefusalCode,
  { device, hold }: { device?: string | null | undefined; hold?: string | undefined },
): string {
  return REFUSALS[code].fix
    .replaceAll('<device>', device ?? '<device>')
    .replaceAll('<hold>', hold ?? '<hold>')
}

async function investigate(deps: Deps, subject: string): Promise<Case> {
  const now = deps.now()
  const base = { now, issuer: deps.authority.device.id, clone: null, factor: null }
  const device = await findDevice(deps, subject)
  if (device)
    return {
      ...base,
      clone: await cloneAlarmOf(deps, device.id),
      factor: await factorOf(deps, device),
      device,
      certificate: newestOf(device, base.now),
      refusals: device.refusals,
    }
  const hex = subject.replaceAll(':', '').toLowerCase()
  const isFingerprint = /^[0-9a-f]{64}$/.test(hex)
  const found = await deps.registry.findCredential(isFingerprint ? { fingerprint: hex } : { serial: hex })
  if (found) {
    const owner = await findDevice(deps, found.device.id)
    const clone = await cloneAlarmOf(deps, found.device.id)
    const factor = owner && (await factorOf(deps, owner))
    return {
      ...base,
      clone,
      factor,
      device: owner,
      certificate: found.certificate,
      refusals: owner?.refusals ?? [],
    }
  }
  const stranger = isFingerprint ? { fingerprint: hex } : { address: subject }
  return { ...base, device: null, certificate: null, refusals: await deps.registry.refusalsOf(stranger) }
}

/** The newest of the last week. */
async function cloneAlarmOf(deps: Deps, device: string): Promise<CloneAlarm | null> {
  const [newest] = await deps.registry.cloneAlarms({ since: deps.now() - CLONE_SHOWN_MS, limit: 1, device })
  return newest ?? null
}

/** A service's own goes before that of its fleet. */
async function factorOf(deps: Deps, { id, kind, fleet }: DeviceDetail): Promise<SecondFactor | null> {
  const own = kind === 'service' ? await deps.registry.factorOf({ kind, id }) : null
  return own ?? (await deps.registry.factorOf({ kind: 'fleet', id: fleet }))
}

async function findDevice(deps: Deps, id: string): Promise<DeviceDetail | null> {
  try {
    return await deps.registry.showDevice(id, deps.now())
  } catch (error) {
    if (isMusterError(error, 'not_found')) return null
    throw error
  }
}

/** The newest live certificate, or the newest of all when none is. */
function newestOf(device: DeviceDetail, now: number): CertificateView | null {
  const newestFirst = device.certificates.toSorted((a, b) => b.notBefore - a.notBefore)
  const isLive = (one: CertificateView) => ['issued', 'active'].includes(one.state) && one.notAfter >= now
  return newestFirst.find(isLive) ?? newestFirst[0] ?? null
}

/** A stranger is known by its refusals alone: the newest is the cause. */
function strangerCause(known: Case): Pick<Finding, 'code' | 'says'> | undefined {
  const [last] = known.refusals
  if (known.device || !last || !isRefusalCode(last.code)) return undefined
  return { code: last.code, says: REFUSALS[last.code].text }
}

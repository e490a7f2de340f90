import type {
  CertificateView,
  CloneAlarm,
  DeviceDetail,
  ExplainStep,
  Explanation,
  RefusalView,
} from '#shared/api'
import { isMusterError, MusterError } from '#shared/errors'
import { isRefusalCode, REFUSALS, type RefusalCode } from '#shared/refusals'
import type { Deps } from './deps.ts'

/** What is known about the subject of a question. */
interface Case {
  readonly now: number
  readonly issuer: string
  readonly device: DeviceDetail | null
  /** The one that was asked for, or the one that the device should be using. */
  readonly certificate: CertificateView | null
  readonly refusals: readonly RefusalView[]
  readonly clone: CloneAlarm | null
}

/** So long an alarm is told, ms. */
const CLONE_SHOWN_MS = 7 * 86_400_000

/** One step, and the code under which a broker refuses there. */
type Finding = ExplainStep & { readonly code: RefusalCode | null }

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
  return {
    subject,
    device,
    verdict: cause ? 'refused' : known.certificate ? 'admitted' : 'unknown',
    code: cause?.code ?? null,
    text: cause
      ? cause.says
      : known.certificate
        ? 'Nothing stops it: it would be let in now.'
        : 'Nothing is recorded about it.',
    fix: cause?.code ? REFUSALS[cause.code].fix.replaceAll('<device>', device ?? '<device>') : null,
    steps: findings.map(({ step, verdict, says }) => ({ step, verdict, says })),
    lastRefusals: [...known.refusals],
  }
}

async function investigate(deps: Deps, subject: string): Promise<Case> {
  const now = deps.now()
  const base = { now, issuer: deps.authority.device.id, clone: null }
  const device = await findDevice(deps, subject)
  if (device)
    return {
      ...base,
      clone: await cloneAlarmOf(deps, device.id),
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
    return { ...base, clone, device: owner, certificate: found.certificate, refusals: owner?.refusals ?? [] }
  }
  const stranger = isFingerprint ? { fingerprint: hex } : { address: subject }
  return { ...base, device: null, certificate: null, refusals: await deps.registry.refusalsOf(stranger) }
}

/** The newest of the last week. */
async function cloneAlarmOf(deps: Deps, device: string): Promise<CloneAlarm | null> {
  const [newest] = await deps.registry.cloneAlarms({ since: deps.now() - CLONE_SHOWN_MS, limit: 1, device })
  return newest ?? null
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

const STEPS: readonly ((known: Case) => Finding)[] = [
  function tcp({ device, refusals }) {
    if (device?.online) return ok('tcp', 'It is connected now.')
    if (device?.lastSeenAt) return ok('tcp', `A broker last saw it at ${iso(device.lastSeenAt)}.`)
    const [last] = refusals
    if (last) return ok('tcp', `It reached ${last.by} from ${last.address} at ${iso(last.at)}.`)
    return unknown('tcp', 'No broker has seen it: check its network, host name and port.')
  },
  function tls(known) {
    const last = sinceLastSeen(known, ['R-NOCERT', 'R-PROFILE'])
    return last ? refused('tls', last) : ok('tls', 'No handshake of it was refused since it was last seen.')
  },
  function chain({ certificate, issuer, ...known }) {
    const last = sinceLastSeen({ certificate, issuer, ...known }, ['R-UNKNOWN-CA'])
    if (last) return refused('chain', last)
    if (!certificate) return unknown('chain', 'There is no certificate to check.')
    if (certificate.issuer === issuer) return ok('chain', 'The certificate is of the device CA.')
    return refused(
      'chain',
      'R-UNKNOWN-CA',
      `The certificate is of another CA (${certificate.issuer.slice(0, 16)}).`,
    )
  },
  function dates({ certificate, now }) {
    if (!certificate) return unknown('dates', 'There is no certificate to check.')
    if (now > certificate.notAfter)
      return refused('dates', 'R-EXPIRED', `The certificate expired at ${iso(certificate.notAfter)}.`)
    if (now < certificate.notBefore)
      return refused('dates', 'R-NOTYET', `The certificate is valid from ${iso(certificate.notBefore)} on.`)
    return ok('dates', `The certificate is valid until ${iso(certificate.notAfter)}.`)
  },
  function registry({ device, certificate }) {
    if (certificate && certificate.state !== 'reserved')
      return ok('registry', `Certificate ${certificate.serial} is recorded.`)
    if (certificate)
      return refused(
        'registry',
        'R-UNRECORDED',
        'Its enrollment was not finished: repeat it with the same token and key.',
      )
    if (device?.state === 'pending') return unknown('registry', 'It has no certificate yet.')
    if (device) return refused('registry', 'R-NOCERT', `The device is ${device.state}: it has not enrolled.`)
    return unknown('registry', 'The registry has no record of it.')
  },
  function state({ device, certificate, now }) {
    if (device?.state === 'retired') return refused('state', 'R-RETIRED')
    if (device?.state === 'pending') return refused('state', 'R-PENDING')
    if (!certificate) return unknown('state', 'There is no certificate to check.')
    if (certificate.state === 'revoked') {
      return refused(
        'state',
        'R-REVOKED',
        `The certificate was revoked at ${iso(certificate.revokedAt ?? 0)} (${certificate.reason}).`,
      )
    }
    const isSuperseded = certificate.supersededFrom !== null && certificate.supersededFrom <= now
    if (certificate.state === 'superseded' || isSuperseded) return refused('state', 'R-SUPERSEDED')
    return ok('state', `The device is ${device?.state}, the certificate ${certificate.state}.`)
  },
  function holds({ device }) {
    const [hold] = device?.holds ?? []
    if (!hold) return ok('holds', 'It is under no hold.')
    return refused(
      'holds',
      'R-HELD',
      `Hold ${hold.id} on ${hold.scope.kind} "${hold.scope.id}" stops it since ${iso(hold.since)} (${hold.reason}).`,
    )
  },
  function clientId(known) {
    const last = sinceLastSeen(known, ['R-IDMISMATCH', 'R-WILL'])
    return last ? refused('client id', last) : ok('client id', 'Use the device id as MQTT client id.')
  },
  function copies({ clone, device }) {
    if (clone === null)
      return device ? ok('copies', 'No copy of its key was noticed.') : unknown('copies', 'Nothing to say.')
    const { alarms, address, otherAddress, lastAt, plan } = clone
    const held =
      plan === null ? '' : ` The plane holds it for that: \`muster release ${plan}\` lifts the hold.`
    return unknown(
      'copies',
      `ALARM: ${address} and ${otherAddress} took its identity from each other, ${alarms} alarm(s), the last at ${iso(lastAt)}. Its key may be in two places.${held}`,
    )
  },
  function policy(known) {
    const last = known.refusals.find(({ code }) => code.startsWith('R-POLICY'))
    const fleet = known.device?.fleet
    if (!fleet) return unknown('policy', 'It belongs to no fleet.')
    return ok('policy', last ? deniedLast(fleet, last) : `The policy of fleet "${fleet}" applies.`)
  },
]

/** Names the topic, and the rule that denied it or fell short. */
function deniedLast(fleet: string, { code, evidence }: RefusalView): string {
  const { topic, filter, rule, reason } = evidence
  const what = code === 'R-POLICY-PUB' ? `publishing to "${topic}"` : `subscribing to "${filter}"`
  const why = reason === undefined ? '' : `: ${reason}`
  const by = rule === undefined ? '' : ` (rule ${rule})`
  return `Let in by fleet "${fleet}"; last denied: ${what}${why}${by}.`
}

/** The newest refusal with one of the codes, unless the device was let in after it. */
function sinceLastSeen(known: Case, codes: readonly RefusalCode[]): RefusalCode | null {
  const last = known.refusals.find(
    ({ code, at }) => codes.some((one) => one === code) && at > (known.device?.lastSeenAt ?? 0),
  )
  return last && isRefusalCode(last.code) ? last.code : null
}

/** A stranger is known by its refusals alone: the newest is the cause. */
function strangerCause(known: Case): Pick<Finding, 'code' | 'says'> | undefined {
  const [last] = known.refusals
  if (known.device || !last || !isRefusalCode(last.code)) return undefined
  return { code: last.code, says: REFUSALS[last.code].text }
}

function ok(step: string, says: string): Finding {
  return { step, verdict: 'ok', says, code: null }
}

function unknown(step: string, says: string): Finding {
  return { step, verdict: 'unknown', says, code: null }
}

function refused(step: string, code: RefusalCode, says: string = REFUSALS[code].text): Finding {
  return { step, verdict: 'refused', says, code }
}

function iso(time: number): string {
  return new Date(time).toISOString()
}

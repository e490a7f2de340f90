import type { CertificateView, CloneAlarm, DeviceDetail, ExplainStep, RefusalView } from '#shared/api'
import { isRefusalCode, REFUSALS, type RefusalCode } from '#shared/refusals'
import type { SecondFactor } from '#shared/second-factor'

/** What is known about the subject of a question. */
export interface Case {
  readonly now: number
  readonly issuer: string
  readonly device: DeviceDetail | null
  /** The one that was asked for, or the one that the device should be using. */
  readonly certificate: CertificateView | null
  readonly refusals: readonly RefusalView[]
  readonly clone: CloneAlarm | null
  /** What it has to bring beside its certificate. */
  readonly factor: SecondFactor | null
}

/** One step, and the code under which a broker refuses there. */
export type Finding = ExplainStep & { readonly code: RefusalCode | null }

/** From TCP to policy, as admission goes. */
export const STEPS: readonly ((known: Case) => Finding)[] = [
  function tcp({ device, refusals }) {
    if (device?.online) return ok('tcp', 'It is connected now.')
    if (device?.lastSeenAt) return ok('tcp', `A broker last saw it at ${iso(device.lastSeenAt)}.`)
    const [last] = refusals
    if (last) return ok('tcp', `It reached ${last.by} from ${last.address} at ${iso(last.at)}.`)
    return unknown('tcp', 'No broker has seen it: check its network, host name and port.')
  },
  function tls(known) {
    const last = sinceLastSeen(known, ['R-TLS', 'R-NOCERT', 'R-PROFILE'])
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
    if (!device) return unknown('holds', 'It is no device.')
    const [hold] = device.holds
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
  function factor(known) {
    const step = 'factor'
    if (!known.device) return unknown(step, 'It is no device.')
    const { factor } = known
    if (factor === null) return ok(step, 'The certificate is enough.')
    const asks =
      factor.kind === 'jwt' ? 'It has to bring a token (JWT) as well' : 'It has to bring a password as well'
    const last = newestSinceSeen(known, ['R-FACTOR'])
    if (last === null) return ok(step, `${asks}.`)
    return refused(step, 'R-FACTOR', `${asks}; ${factorFault(last)}.`)
  },
  function broker(known) {
    const last = sinceLastSeen(known, ['R-STALE', 'R-RATE'])
    return last ? refused('broker', last) : ok('broker', 'No broker turned it away for reasons of its own.')
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

/** Faults of a proof that are not those of what the client has brought. */
const NOT_ITS_FAULT: Readonly<Record<string, string>> = {
  keys: 'the broker had no keys to check it with',
  busy: 'the broker had too many to check at once',
  changed: 'what is asked for was changed while it was checked',
}

function factorFault({ evidence: { fault, why } }: RefusalView): string {
  const says = NOT_ITS_FAULT[String(fault)] ?? `what CONNECT brought last does not hold: ${fault}`
  return why === undefined ? says : `${says} (${why})`
}

/** Names the topic, and the rule that denied it or fell short. */
function deniedLast(fleet: string, { code, evidence }: RefusalView): string {
  const { topic, filter, rule, reason } = evidence
  const what = code === 'R-POLICY-PUB' ? `publishing to "${topic}"` : `subscribing to "${filter}"`
  const why = reason === undefined ? '' : `: ${reason}`
  const by = rule === undefined ? '' : ` (rule ${rule})`
  return `Let in by fleet "${fleet}"; last denied: ${what}${why}${by}.`
}

/** The newest refusal with one of the codes, unless the device was let in after it. */
function newestSinceSeen(known: Case, codes: readonly RefusalCode[]): RefusalView | null {
  const isOne = ({ code, at }: RefusalView) =>
    codes.some((one) => one === code) && at > (known.device?.lastSeenAt ?? 0)
  return known.refusals.find(isOne) ?? null
}

function sinceLastSeen(known: Case, codes: readonly RefusalCode[]): RefusalCode | null {
  const last = newestSinceSeen(known, codes)
  return last && isRefusalCode(last.code) ? last.code : null
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

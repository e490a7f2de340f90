import type { Receipt } from '#shared/api'

/** What a run comes to: the one document on stdout with `--json`. Times are ms, `seconds` is the whole run. */
export interface Outcome {
  readonly schemaVersion: 1
  readonly devices: number
  readonly enrolled: number
  readonly connected: number
  readonly rotated: number
  readonly messagesSent: number
  readonly messagesLost: number
  readonly revoked: number
  readonly sessionsClosed: number
  /** From the revocation request to the close of the socket, seen by the revoked devices. */
  readonly closeMs: { readonly p50: number; readonly p95: number; readonly max: number }
  readonly refusedAfter: number
  readonly bricked: number
  readonly seconds: number
  readonly ok: boolean
}

export interface Quantiles {
  readonly count: number
  readonly p50: number
  readonly p95: number
  readonly p99: number
  readonly max: number
}

/** Everything that `--report FILE` holds. */
export interface RunReport {
  readonly schemaVersion: 1
  readonly scenario: string
  readonly seed: string
  readonly startedAt: string
  readonly outcome: Outcome
  /** Times of the phases, ms a device; `delivery`: from making a message to its arrival at the judge. */
  readonly latencyMs: Readonly<Record<string, Quantiles>>
  /** CONNACKs that refused a device, by return code, and whether it had offered to resume a TLS session. */
  readonly refusals: Readonly<Record<string, number>>
  /** Revoked devices whose certificate is on the CRL. */
  readonly listedOnCrl: number
  readonly receipt: Receipt | null
  /** Why `ok` is false, one sentence each. */
  readonly findings: readonly string[]
}

/** By nearest rank; zeros when there are no values. */
export function quantiles(values: readonly number[]): Quantiles {
  const sorted = values.toSorted((a, b) => a - b)
  const rank = (share: number) => round(sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0)
  return {
    count: sorted.length,
    p50: rank(0.5),
    p95: rank(0.95),
    p99: rank(0.99),
    max: round(sorted.at(-1) ?? 0),
  }
}

/** To a tenth, which is what a clock between two processes is good for. */
export function round(value: number): number {
  return Math.round(value * 10) / 10
}

/** `1 device`, `2 devices` */
export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`
}

const BAR = 12

/** `████████░░░░` */
export function bar(done: number, total: number): string {
  const filled = total === 0 ? BAR : Math.floor((done / total) * BAR)
  return '█'.repeat(filled) + '░'.repeat(BAR - filled)
}

/** `12 ms`, `1.4 s` */
export function milliseconds(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`
}

/** What a person reads; only the phases that took place. */
export function summary(report: RunReport): string {
  const { outcome, latencyMs } = report
  const lines = [
    `  ${[phase('enroll', outcome.enrolled, report), phase('connect', outcome.connected, report)].join('   ')}`,
    latencyMs.rotate
      ? `  rotate   ${outcome.rotated}/${outcome.devices}, ${counted(outcome.messagesLost, 'message')} lost of ${outcome.messagesSent}`
      : `  publish  ${counted(outcome.messagesSent, 'message')}, ${outcome.messagesLost} lost`,
    ...(outcome.revoked > 0 || report.receipt ? [revocation(report)] : []),
    `  verdict  ${outcome.ok ? 'ok' : 'NOT OK'}: ${outcome.bricked} bricked, ${outcome.seconds} s`,
    ...report.findings.map((finding) => `           - ${finding}`),
  ]
  return `${lines.join('\n')}\n`
}

function phase(name: string, done: number, { outcome, latencyMs }: RunReport): string {
  const p95 = latencyMs[name]?.p95
  const took = p95 === undefined ? '' : `  p95 ${milliseconds(p95)}`
  return `${name.padEnd(8)} ${bar(done, outcome.devices)} ${done}/${outcome.devices}${took}`
}

function revocation({ outcome, listedOnCrl }: RunReport): string {
  const { revoked, sessionsClosed, closeMs, refusedAfter } = outcome
  const crl = listedOnCrl === revoked ? 'CRL lists them' : `CRL lists ${listedOnCrl}`
  return (
    `  revoke   ${counted(revoked, 'device')} (--now): ${counted(sessionsClosed, 'session')} closed after ${milliseconds(closeMs.max)} (max), ` +
    `${refusedAfter}/${revoked} refused on reconnect, ${crl}`
  )
}

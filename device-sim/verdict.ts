import type { Receipt } from '#shared/api'
import { isCarriedOut } from '#shared/receipt'
import type { PairVerdict } from './judge-pairs.ts'
import { counted, type Outcome, quantiles, round } from './report.ts'

/** What the judge has found out about one device, and what the device says it has sent. */
export interface Finding {
  readonly id: string
  /** Chosen to be revoked. */
  readonly isRevoked: boolean
  /** Sequence of its newest message, and those that nobody acknowledged: the device's own word. */
  readonly claim: { readonly last: number; readonly unacknowledged: readonly number[] }
  /** Of 1 to `claim.last`, what never arrived at the judge. */
  readonly missing: readonly number[]
  /** Serial on disk before the rotation; null when nothing was rotated. */
  readonly serialBefore: string | null
  readonly pair: PairVerdict
  /** The registry's certificates of this device; empty when it does not know the device. */
  readonly certificates: readonly {
    readonly serial: string
    readonly state: string
    readonly firstSeenAt: number | null
  }[]
  /** Whether the judge asked the broker with this pair. */
  readonly isAsked: boolean
  /** From the revocation request to the close of its socket, ms; null when it did not close. */
  readonly closedAfterMs: number | null
  /** Return code of its own next attempt; null without one. */
  readonly ownReturnCode: number | null
}

export interface Measurements {
  readonly devices: readonly Finding[]
  readonly expects: { readonly rotation: boolean; readonly revoked: number }
  /** Open sockets as the brokers count them; null when nothing was revoked. */
  readonly sessions: { readonly before: number; readonly after: number } | null
  readonly receipt: Receipt | null
  readonly listedOnCrl: number
  readonly seconds: number
}

/** CONNACK "not authorized" [MQTT-3.2.2-3]. */
const NOT_AUTHORIZED = 5
/** The promise: sessions of a revoked device are gone in under a second. */
const CLOSE_LIMIT_MS = 1000
const FINDINGS_SHOWN = 20

/** Draws the conclusions; `ok` only if everything that was expected was measured. */
export function judge(measured: Measurements): { outcome: Outcome; findings: string[] } {
  const { devices, expects, sessions } = measured
  const revoked = devices.filter(({ isRevoked }) => isRevoked)
  const closes = revoked.map(({ closedAfterMs }) => closedAfterMs).filter((ms) => ms !== null)
  const closed = sessions ? Math.min(closes.length, Math.max(0, sessions.before - sessions.after)) : 0
  const { p50, p95, max } = quantiles(closes)
  const tally = {
    schemaVersion: 1,
    devices: devices.length,
    enrolled: count(devices, (device) => certificateOf(device) !== undefined),
    connected: count(devices, ({ certificates }) =>
      certificates.some(({ firstSeenAt }) => firstSeenAt !== null),
    ),
    rotated: count(devices, isRotated),
    messagesSent: sum(devices, ({ claim }) => claim.last - claim.unacknowledged.length),
    messagesLost: sum(devices, (device) => lostBy(device).length),
    revoked: count(revoked, (device) => certificateOf(device)?.state === 'revoked'),
    sessionsClosed: closed,
    closeMs: { p50, p95, max },
    refusedAfter: count(
      revoked,
      ({ pair, ownReturnCode }) => pair.returnCode === NOT_AUTHORIZED && ownReturnCode === NOT_AUTHORIZED,
    ),
    bricked: count(devices, (device) => brickedBy(device) !== null),
    seconds: round(measured.seconds),
  } as const
  const findings = [
    ...faultsOfRun(tally, measured),
    ...devices.flatMap((device) => brickedBy(device) ?? []),
    ...devices.flatMap(lossOf),
    ...(expects.rotation
      ? devices.filter((device) => !isRotated(device)).map(({ id }) => `${id}: not rotated`)
      : []),
  ]
  return { outcome: { ...tally, ok: findings.length === 0 }, findings: findings.slice(0, FINDINGS_SHOWN) }
}

function faultsOfRun(
  tally: Omit<Outcome, 'ok'>,
  { expects, receipt, listedOnCrl, sessions }: Measurements,
): string[] {
  const wanted = expects.revoked
  const checks: [boolean, string][] = [
    [tally.devices > 0, 'there were no devices'],
    [tally.enrolled === tally.devices, `${tally.enrolled} of ${tally.devices} devices are enrolled`],
    [
      tally.connected === tally.devices,
      `${tally.connected} of ${tally.devices} devices were seen by a broker`,
    ],
    [tally.messagesSent > 0, 'no message was sent'],
    [tally.revoked === wanted, `${tally.revoked} of ${wanted} devices are revoked`],
    [
      tally.sessionsClosed === wanted,
      `${tally.sessionsClosed} of ${wanted} sessions closed (the brokers tally ${sessions?.before} before and ${sessions?.after} after)`,
    ],
    [tally.closeMs.max < CLOSE_LIMIT_MS, `the last session closed after ${tally.closeMs.max} ms`],
    [tally.refusedAfter === wanted, `${tally.refusedAfter} of ${wanted} devices were refused on reconnect`],
    [listedOnCrl === wanted, `the CRL lists ${listedOnCrl} of ${wanted}`],
    [wanted === 0 || isComplete(receipt), 'the receipt of the revocation is not complete'],
  ]
  return checks.filter(([holds]) => !holds).map(([, says]) => says)
}

/** Every broker has applied it, all that it takes is forgotten, and nobody survived. */
function isComplete(receipt: Receipt | null): boolean {
  if (!receipt) return false
  return receipt.survivors.length === 0 && receipt.brokers.every(isCarriedOut)
}

function certificateOf({ certificates, pair }: Finding): Finding['certificates'][number] | undefined {
  return certificates.find(({ serial }) => serial === pair.serial)
}

function isRotated(device: Finding): boolean {
  const { serialBefore, pair } = device
  if (serialBefore === null || pair.serial === serialBefore) return false
  return (certificateOf(device)?.firstSeenAt ?? null) !== null
}

/** What a revoked device had on its lips was not promised to anybody; all else must arrive. */
function lostBy({ isRevoked, claim, missing }: Finding): readonly number[] {
  if (!isRevoked) return missing
  const pending = new Set(claim.unacknowledged)
  return missing.filter((sequence) => !pending.has(sequence))
}

function lossOf(device: Finding): string[] {
  const lost = lostBy(device)
  return lost.length === 0
    ? []
    : [`${device.id}: ${counted(lost.length, 'message')} lost, the first is number ${lost[0]}`]
}

/** Why the device cannot come back with what it has; null when it can, or when it was turned away on purpose. */
function brickedBy(device: Finding): string | null {
  const { id, pair, isRevoked, isAsked } = device
  if (pair.fault) return `${id}: ${pair.fault}`
  if (isRevoked) return null
  const state = certificateOf(device)?.state
  if (state !== 'issued' && state !== 'active') {
    return `${id}: its certificate ${pair.serial} is ${state ?? 'unknown'} in the registry`
  }
  return isAsked && pair.returnCode !== 0
    ? `${id}: the broker does not take its pair (${pair.returnCode})`
    : null
}

function count<Item>(items: readonly Item[], holds: (item: Item) => boolean): number {
  return items.filter(holds).length
}

function sum<Item>(items: readonly Item[], of: (item: Item) => number): number {
  return items.reduce((total, item) => total + of(item), 0)
}

import type { X509Certificate } from 'node:crypto'
import type { Duplex } from 'node:stream'
import type { TLSSocket } from 'node:tls'
import { isMusterError } from '#shared/errors'
import type { Report } from '#shared/feed'
import type { Peer } from '#shared/identity/peer'
import type { Log } from '#shared/log'
import { isRefusalErrorCode } from '#shared/refusals'
import { type Ending, endedBy } from '../ending.ts'
import { admit } from '../judge/admission.ts'
import type { Limits } from '../limits.ts'
import { type Refusal, refusedReport } from '../refusals.ts'
import type { AdmissionRecord } from '../replica/replica.ts'
import type { TrustRow } from '../replica/replica-rows.ts'
import { endWithRecord } from '../session-end.ts'
import { type Connection, openConnection, type Sessions } from '../sessions.ts'
import type { PolicyReader } from '../store/allowances.ts'
import { sendConnackRefused } from './connack-refused.ts'
import type { Doorstep } from './doorstep.ts'
import { type Guard, guardSocket } from './guarded-socket.ts'
import { KnownPeers } from './known-peers.ts'

/** What admission reads of the replica. */
export interface AdmissionReader extends PolicyReader {
  record(fingerprint: string): AdmissionRecord | null
  /** How long the registry has been silent, ms; for ever when it was never heard. */
  silentMs(now: number): number
  /** What devices are to trust; null before the first rollover. */
  trust?(): TrustRow | null
}

export interface GateDeps {
  now(): number
  readonly trustDomain: string
  readonly replica: AdmissionReader
  /** Resolves when the replica knows the certificate, or with null after at most {@link Limits.recordWaitMs}. */
  waitForRecord(fingerprint: string): Promise<AdmissionRecord | null>
  readonly maxStalenessMs: number
  readonly sessions: Sessions
  readonly limits: Limits
  readonly log: Log
  report(report: Report): void
}

/** Where a client goes that has been let in. */
export interface Inside {
  handle(connection: Connection): void
}

export interface GateWays {
  readonly inside: Inside
  /** The CAs that client certificates are issued by, as they are trusted now. */
  issuers(): readonly X509Certificate[]
  /** What addresses and certificates may have is counted there. */
  readonly doorstep: Pick<Doorstep, 'addressOf' | 'mayAttempt' | 'admitted' | 'refused'>
}

/** Takes a TLS socket, and what is spoken on top of it; the guard that it returns is on the latter from then on. */
export type Gate = (tls: TLSSocket, socket?: Duplex) => Guard

interface Visitor {
  readonly deps: GateDeps
  readonly doorstep: GateWays['doorstep']
  readonly tls: TLSSocket
  /** What MQTT is spoken on: the TLS socket itself, or WebSocket on top of it. */
  readonly socket: Duplex
  readonly guard: Guard
  readonly address: string
  /** Ends the wait for CONNECT. */
  readonly connectDeadline: NodeJS.Timeout
  /** Its refusal has been reported: what it does after that is not. */
  isTurnedAway: boolean
}

/**
 * Takes sockets whose TLS handshake is done, whether or not a certificate came with them, and what MQTT is to be
 * spoken on where that is not the socket itself: every door of the broker leads here. Only one that is
 * identified and admitted goes inside; any other gets a CONNACK that says so, and a report with the reason.
 */
export function openGate(deps: GateDeps, { inside, issuers, doorstep }: GateWays): Gate {
  let opened = 0
  const known = new KnownPeers(deps.trustDomain)
  return (tls, socket = tls) => {
    const visitor = meet(deps, { tls, socket, doorstep })
    const identified = identify(visitor, { issuers: issuers(), known })
    if ('code' in identified) {
      turnAway(visitor, identified, null)
      return visitor.guard
    }
    const id = `c${++opened}`
    enter(visitor, identified, id, inside).catch((error: unknown) => {
      deps.log.error({ err: error }, 'gate failed')
      socket.destroy()
    })
    return visitor.guard
  }
}

function meet(
  deps: GateDeps,
  { tls, socket, doorstep }: Pick<Visitor, 'tls' | 'socket' | 'doorstep'>,
): Visitor {
  const address = doorstep.addressOf(tls)
  const { limits } = deps
  const violated = (violation: string, ending: Ending = 'packet') => {
    if (guard.connection !== null) endedBy(guard.connection, ending)
    if (visitor.isTurnedAway) return
    visitor.deps.report(
      refusedReport({ code: 'packet', evidence: { violation } }, whoIs(visitor), deps.now()),
    )
  }
  const guard = guardSocket(socket, {
    limits,
    onViolation: (violation) => violated(violation),
    onSlow: (bytes) => violated(`${bytes} octets wait for a client that does not read`, 'slow'),
  })
  const connectDeadline = setTimeout(() => {
    if (guard.walk.packets > 0) return
    violated(`no CONNECT within ${limits.connectMs} ms`)
    socket.destroy()
  }, limits.connectMs)
  const visitor: Visitor = {
    ...{ deps, doorstep, tls, socket, guard, address, connectDeadline },
    isTurnedAway: false,
  }
  socket.on('fault', violated) // of what is between TLS and MQTT
  socket.on('error', () => socket.destroy()) // 'close' follows; without a listener the process would end
  socket.on('close', () => clearTimeout(connectDeadline)) // comes once; `once` would keep two objects more for it
  tls.disableRenegotiation() // nobody changes certificates in a connection that has been judged
  return visitor
}

function whoIs({ guard, address }: Visitor) {
  const { connection } = guard
  return { device: connection?.device ?? null, fingerprint: connection?.fingerprint ?? null, address }
}

/**
 * The peer that the certificate stands for; resumed sessions are looked at in the same way as new ones. Nobody is
 * identified unless TLS has verified the chain; a fault that TLS found in a certificate of ours is named by our check.
 */
function identify(
  { deps, tls }: Visitor,
  { issuers, known }: { issuers: readonly X509Certificate[]; known: KnownPeers },
): Peer | Refusal {
  const certificate = tls.getPeerX509Certificate()
  // Node says UNABLE_TO_GET_ISSUER_CERT when there is none.
  if (certificate === undefined) return { code: 'nocert', evidence: {} }
  const isVerified = tls.authorized === true
  const reason = isVerified ? 'ISSUER_NOT_TRUSTED' : chainFault(tls)
  const isOurs = issuers.some(
    (issuer) => certificate.checkIssued(issuer) && (isVerified || certificate.verify(issuer.publicKey)),
  )
  if (!isOurs) {
    return { code: 'unknown_ca', evidence: { issuer: certificate.issuer.replaceAll('\n', ', '), reason } }
  }
  try {
    const peer = known.of(certificate, deps.now())
    return isVerified ? peer : { code: 'profile', evidence: { violation: reason } }
  } catch (error) {
    if (isMusterError(error) && isRefusalErrorCode(error.code)) {
      return { code: error.code, evidence: error.evidence }
    }
    deps.log.error({ err: error }, 'certificate check failed')
    return { code: 'profile', evidence: { violation: 'cannot be read' } }
  }
}

function chainFault({ authorizationError }: TLSSocket): string {
  const fault: unknown = authorizationError // declared as Error, and a string in fact
  return fault instanceof Error && 'code' in fault ? String(fault.code) : String(fault)
}

/** Lets the client in or turns it away; from the reading of the replica to the index no turn of the event loop passes. */
async function enter(visitor: Visitor, peer: Peer, id: string, inside: Inside): Promise<void> {
  const { deps, socket } = visitor
  const { fingerprint } = peer
  const began = deps.now()
  const tooMany = visitor.doorstep.mayAttempt(peer, visitor.address)
  if (tooMany !== null) return turnAway(visitor, tooMany, peer)
  let record = deps.replica.record(fingerprint)
  if (record === null) {
    await waitForRecord(deps, fingerprint)
    if (socket.destroyed) return
    record = deps.replica.record(fingerprint)
  }
  const now = deps.now()
  const { maxStalenessMs } = deps
  const decision = admit({
    record,
    clientId: null,
    peer,
    now,
    silentMs: deps.replica.silentMs(now),
    maxStalenessMs,
  })
  if (!decision.admitted || record === null) {
    const refusal = decision.admitted ? { code: 'unrecorded' as const, evidence: {} } : decision
    const waited = record === null ? { waitedMs: now - began } : {}
    return turnAway(visitor, { code: refusal.code, evidence: { ...refusal.evidence, ...waited } }, peer)
  }
  const connection = describe(visitor, record, id)
  visitor.guard.connection = connection
  deps.sessions.add(connection)
  socket.on('close', () => deps.sessions.remove(connection))
  endWithRecord(deps, connection, record)
  inside.handle(connection)
}

/** The follower's promise, with a deadline of our own; what it says does not matter, the replica is read again. */
async function waitForRecord(deps: GateDeps, fingerprint: string): Promise<void> {
  const deadline = Promise.withResolvers<null>()
  const timer = setTimeout(() => deadline.resolve(null), deps.limits.recordWaitMs)
  try {
    await Promise.race([deps.waitForRecord(fingerprint), deadline.promise])
  } catch (error) {
    deps.log.error({ err: error }, 'waiting for a record failed')
  } finally {
    clearTimeout(timer)
  }
}

function describe(
  { deps, doorstep, tls, socket, address }: Visitor,
  record: AdmissionRecord,
  id: string,
): Connection {
  const { certificate, device, fleet } = record
  const wire = doorstep.admitted(tls)
  return openConnection({
    id,
    socket,
    // Closing below WebSocket would take TLS down at once, and WebSocket with it.
    wire: socket === tls ? wire : undefined,
    fingerprint: certificate.fingerprint,
    serial: certificate.serial,
    device: device.id,
    kind: device.kind,
    batch: device.batch,
    fleet: fleet.id,
    issuer: certificate.issuer,
    address,
    openedAt: deps.now(),
    policy: deps.sessions.policyFor(record, address),
    isResumed: tls.isSessionReused(),
  })
}

function turnAway(visitor: Visitor, refusal: Refusal, peer: Peer | null): void {
  const { deps, tls, socket, guard, address } = visitor
  const evidence = refusal.code === 'nocert' ? { address } : refusal.evidence
  const fingerprint = peer?.fingerprint ?? fingerprintOf(tls)
  if (visitor.doorstep.refused(tls, { code: refusal.code, fingerprint })) {
    deps.report(
      refusedReport({ ...refusal, evidence }, { device: peer?.id ?? null, fingerprint, address }, deps.now()),
    )
  }
  visitor.isTurnedAway = true
  sendConnackRefused(socket, { walk: guard.walk, isBusy: refusal.code === 'rate' })
}

function fingerprintOf(socket: TLSSocket): string | null {
  return socket.getPeerX509Certificate()?.fingerprint256.replaceAll(':', '').toLowerCase() ?? null
}

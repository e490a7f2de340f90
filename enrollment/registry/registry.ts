/**
 * The port of the registry: the only place where state about devices, certificates, tokens and holds lives.
 *
 * Every method that writes is one intent: atomic, durable when its promise resolves, and recorded in the change
 * log and the audit log in the same transaction. An intent that changes anything has exactly one audit entry, which
 * names the positions of its changes (large proposals and `clearSynthetic` are several intents, in slices). What was
 * merely seen, presence and refusals, is neither a change nor audited. Implementations pass `test/contract/registry.ts`.
 * Times are milliseconds since 1970 UTC and come from the caller; the registry has no clock and no randomness.
 * Errors are MusterErrors with the codes named at each method; anything else is a fault of the storage.
 */
import type {
  ApiTokenView,
  BatchRequest,
  BatchView,
  BrokerView,
  CompromisedKeyPage,
  CompromiseReply,
  DeviceDetail,
  DevicePage,
  DeviceView,
  FleetProfile,
  FleetRequest,
  FleetView,
  PlanView,
  ProfileRequest,
  Receipt,
  RefusalView,
  RotationView,
  TokenView,
} from '#shared/api'
import type { Change, Cursor, IssuerRecord, Policy, ReportBatch } from '#shared/feed'
import type { TrustRecord } from '#shared/trust-bundle'
import type { BootstrapIntents } from './bootstrap-records.ts'
import type { CloneIntents } from './clone-records.ts'
import type { EventIntents } from './event-records.ts'
import type { PolicyIntents } from './policy-records.ts'
import type {
  Act,
  Application,
  AuditEntry,
  AuditMark,
  Credential,
  EnrollmentIntent,
  Finalised,
  InfrastructureCertificate,
  Issuance,
  ListedRevocation,
  NewDevice,
  NewPlan,
  NewReissue,
  NewRotation,
  NewToken,
  PositionedChange,
  RefusalSighting,
  RenewalIntent,
  RevocationStatus,
  RevokedEntry,
  RotationMember,
  ServiceIntent,
  SignedCertificate,
  SignNow,
  StatusCounts,
} from './records.ts'
import type { RolloverIntents } from './rollover-records.ts'

export type * from './bootstrap-records.ts'
export type * from './clone-records.ts'
export type * from './event-records.ts'
export type * from './policy-records.ts'
export type * from './records.ts'
export type * from './rollover-records.ts'

export interface Registry
  extends EventIntents,
    RolloverIntents,
    BootstrapIntents,
    CloneIntents,
    PolicyIntents {
  readonly trustDomain: string

  // fleets and batches
  /** @throws MusterError conflict when the id is taken */
  createFleet(fleet: FleetRequest, act: Act): Promise<FleetView>
  listFleets(): Promise<FleetView[]>
  /** Replaces the policy and raises its epoch. @throws MusterError not_found */
  setPolicy(fleet: string, policy: Policy, act: Act): Promise<FleetView>
  /** @throws MusterError not_found */
  showProfile(fleet: string): Promise<FleetProfile>
  /** Of the fleet of a batch; of the fleet `default` for none, or one that is not known: nobody learns which there are. */
  profileFor(batch: string | null): Promise<FleetProfile>
  /** Replaces the profile; it counts from the next issuance on. @throws MusterError not_found */
  setProfile(fleet: string, profile: ProfileRequest, act: Act): Promise<FleetProfile>
  /** Fleet `default` when none is named. @throws MusterError invalid_request (a reserved name), conflict, not_found (the fleet) */
  createBatch(batch: BatchRequest, act: Act): Promise<BatchView>
  listBatches(): Promise<BatchView[]>

  // tokens
  /** Makes the batch when it is new. @throws MusterError invalid_request, conflict (another naming, listed ids of another batch) */
  createToken(token: NewToken): Promise<TokenView>
  /** A one-use token bound to an existing device; a revoked or retired one may enroll again with it. @throws MusterError not_found */
  createReissue(token: NewReissue): Promise<TokenView>
  /** `now` decides which of them have expired. */
  listTokens(page: { batch?: string; now: number }): Promise<TokenView[]>
  /** By the hash of its text, whatever its state; so that a guess is turned away before any cryptography. */
  findToken(hash: string, now: number): Promise<TokenView | null>
  /** @throws MusterError not_found */
  cancelToken(id: string, act: Act): Promise<TokenView>

  // issuance: begin -> sign -> finish, in one commit where `signNow` signs, otherwise in two (docs/issuance-cycle.md)
  /**
   * Spends one use of the token, determines the device id, allocates the serial and records the intent; all or nothing.
   * The same token and key again: the same issuance, nothing spent, also when the token is spent or expired since.
   * Where token or batch demand approval: an application, whose use is reserved; once it is approved the same request
   * gets an issuance.
   * @throws MusterError token_unknown, token_cancelled, token_batch, token_spent, token_expired, token_tombstone,
   *   csr_subject (no id, or one that is not on the list), id_taken, csr_key (the key of another device, or not the one
   *   that was approved), held, pending (with another token), rejected
   */
  beginIssuance(intent: EnrollmentIntent, signNow?: SignNow): Promise<Issuance | Application>
  /**
   * Records a successor of the presented certificate; idempotent on (presented certificate, key).
   * @throws MusterError unrecorded, held, revoked, superseded, retired, pending, expired, notyet, successors, csr_key
   */
  beginRenewal(intent: RenewalIntent, signNow?: SignNow): Promise<Issuance>
  /** Makes or extends a service: its first certificate, or one for another key. @throws MusterError id_taken, held, csr_key */
  beginService(intent: ServiceIntent, signNow?: SignNow): Promise<Issuance>
  /** Makes the reserved certificate `issued`; from here on brokers know it. Idempotent. @throws MusterError not_found, conflict */
  finishIssuance(serial: string, signed: SignedCertificate, act: Act): Promise<void>

  // compromised keys: fed by every revocation for keyCompromise, and by lists
  /** In one commit; at most some hundreds at a time. */
  compromiseKeys(keys: readonly string[], act: Act): Promise<CompromiseReply>
  listCompromisedKeys(page: { after?: string; limit: number }): Promise<CompromisedKeyPage>

  // rotations: campaigns that move the windows of devices
  /** Notes what is to be rotated; nothing has moved yet. @throws MusterError not_found */
  beginRotation(rotation: NewRotation): Promise<RotationView>
  /** Ids of those that have windows left to move. */
  pacingRotations(): Promise<string[]>
  /** Moves the windows of the next `limit` devices; true when there are no more. @throws MusterError not_found */
  paceRotation(id: string, limit: number, act: Act): Promise<boolean>
  /** @throws MusterError not_found */
  showRotation(id: string): Promise<RotationView>
  /** Newest first, at most 100. */
  listRotations(): Promise<RotationView[]>
  /** Certificates whose window it moved, from those after a row on. @throws MusterError not_found */
  rotationMembers(id: string, page: { after: number; limit: number; now: number }): Promise<RotationMember[]>

  // devices
  listDevices(page: {
    fleet?: string
    batch?: string
    state?: string
    after?: string
    limit: number
    now: number
  }): Promise<DevicePage>
  /** @throws MusterError not_found */
  showDevice(id: string, now: number): Promise<DeviceDetail>
  /** Lets the device that waits enroll with this key, and no other. Idempotent. @throws MusterError not_found, conflict */
  approveDevice(decision: { id: string; spki: string }, act: Act): Promise<DeviceView>
  /** The token gets its use back; the same token and key are refused from now on. @throws MusterError not_found, conflict */
  rejectDevice(decision: { id: string; spki: string }, act: Act): Promise<void>
  /** Makes an expected device that needs no approval. @throws MusterError not_found (the batch), conflict, csr_key */
  addDevice(device: NewDevice): Promise<DeviceView>
  /** The device leaves service: not revoked, but refused. @throws MusterError not_found, conflict */
  retireDevice(id: string, act: Act): Promise<void>
  /** By fingerprint or serial; null when the registry has no record. */
  findCredential(key: { fingerprint: string } | { serial: string }): Promise<Credential | null>
  /** Forgets every device of the synthetic fleets. Returns how many. */
  clearSynthetic(act: Act): Promise<number>

  // plans: a hold is one row; a revocation is a hold that becomes final
  /** Counts what would be stopped and freezes the members. @throws MusterError not_found */
  proposePlan(plan: NewPlan): Promise<PlanView>
  /** Puts the hold in force: one row, one change. Idempotent. @throws MusterError not_found, count_mismatch, conflict (expired, undone) */
  applyPlan(id: string, devices: number, act: Act): Promise<PlanView>
  /** Ends the hold while it may be undone; others on the same device stay. @throws MusterError not_found, undo_over, conflict */
  undoPlan(id: string, act: Act): Promise<PlanView>
  /** Without receipts; `now` decides which of the proposed ones have expired. */
  listPlans(now: number): Promise<PlanView[]>
  /** With its receipt. @throws MusterError not_found */
  showPlan(id: string, now: number): Promise<PlanView>
  /** Plans whose undo time is over, or whose finalising was interrupted. */
  duePlans(now: number): Promise<string[]>
  /** One commit after which undo is refused; cancels the tokens in scope. @throws MusterError conflict */
  beginFinalising(id: string, act: Act): Promise<void>
  /** Revokes up to `limit` certificates of the plan, dated at the hold's commit; the last slice ends the hold. */
  finaliseSlice(id: string, limit: number, act: Act): Promise<Finalised>
  receipt(id: string): Promise<Receipt>
  /** Spreads what a list of devices was ordered to lose to up to `limit` of them, once the plan is over. False when there is none. */
  spreadPurges(limit: number, act: Act): Promise<boolean>

  // what follows from time
  /** Marks certificates whose overlap is over as superseded; at most `limit`. Returns how many. */
  supersedeDue(now: number, limit: number): Promise<number>

  // the stream
  cursor(): Promise<Cursor>
  /** Changes after `position`, oldest first, at most `limit`. */
  changesAfter(position: number, limit: number): Promise<PositionedChange[]>
  /** The whole state at one cursor, as changes in an order for replicas, without what has expired at `now`. It pins the log until the iteration ends. */
  snapshot(now: number): Promise<{ cursor: Cursor; changes: AsyncIterable<readonly Change[]> }>
  /** Calls back after each commit that added changes made through this instance; returns how to stop. */
  onCommit(listener: (position: number) => void): () => void
  /**
   * Takes what a broker saw and applied; a batch taken before changes nothing. A first sighting of a certificate
   * makes it active and starts the overlap of its predecessors.
   * @throws MusterError not_found when the broker is forgotten
   */
  applyReports(broker: string, batch: ReportBatch, overlapMs: number, now: number): Promise<void>

  // refusals and explanations
  recordRefusal(refusal: RefusalSighting): Promise<void>
  /** Newest first, at most 20 a device; strangers by fingerprint or address. */
  refusalsOf(
    subject: { device: string } | { fingerprint: string } | { address: string },
  ): Promise<RefusalView[]>

  // brokers, operators, the plane's own certificates
  invite(invitation: { id: string; hash: string; expiresAt: number } & Act): Promise<void>
  /** Spends the invitation for this key (idempotent) and returns the broker's id. @throws MusterError token_unknown, token_spent, token_expired */
  acceptInvitation(request: { hash: string; spkiHash: string; now: number }): Promise<string>
  /**
   * A new certificate of the same owner does not end the older ones; they expire.
   * @throws MusterError not_found when its owner is a broker that has been forgotten
   */
  recordInfrastructure(certificate: Omit<InfrastructureCertificate, 'revokedAt'>, act: Act): Promise<void>
  findInfrastructure(fingerprint: string): Promise<InfrastructureCertificate | null>
  listBrokers(now: number): Promise<BrokerView[]>
  /** The stream of a broker opened or ended. */
  streamOf(broker: string, open: boolean, now: number): Promise<void>
  /** Its certificates no longer open anything, and receipts stop waiting for it. @throws MusterError not_found */
  forgetBroker(id: string, act: Act): Promise<void>
  createApiToken(token: { name: string; hash: string; expiresAt: number | null } & Act): Promise<ApiTokenView>
  listApiTokens(): Promise<ApiTokenView[]>
  cancelApiToken(name: string, act: Act): Promise<void>
  /** Name of the live token with this hash, or null. */
  findApiToken(hash: string, now: number): Promise<string | null>

  // issuers and revocation data
  /** Records a CA for clients; the change tells brokers to trust it. */
  recordIssuer(issuer: IssuerRecord, act: Act): Promise<void>
  /** Records what devices are to trust; the change lets brokers tell them. Nothing happens when it is that already. */
  recordTrust(trust: TrustRecord, act: Act): Promise<void>
  /** Final revocations of an issuer whose certificates have not expired before `notExpiredAt`. */
  revokedBy(issuer: string, notExpiredAt: number): Promise<RevokedEntry[]>
  /** The same, oldest first, from those after a mark on; at most `limit`. */
  revokedAfter(
    issuer: string,
    page: { mark: number; notExpiredAt: number; limit: number },
  ): Promise<ListedRevocation[]>
  /** Rises with every final revocation, so that the CRL knows when it is out of date. */
  revocationMark(issuer: string): Promise<number>
  /**
   * Whether a certificate is revoked, or under a hold, read at one moment. Null when the issuer never issued it: a
   * reservation is no certificate.
   */
  revocationStatus(issuer: string, serial: string): Promise<RevocationStatus | null>
  /**
   * Another text after every commit: while it is the same, whatever was read is still so. What this process commits is
   * in it at once, what another one commits from the next turn of the event loop on. Null where that cannot be told.
   */
  stateMark(): string | null

  // audit
  listAudit(after: number, limit: number): Promise<AuditEntry[]>
  /**
   * Recomputes the chain from where it was pruned on; the sequence of the first entry that does not fit, or null when
   * whole. With a head it must also reach that entry, with that hash.
   */
  verifyAudit(head?: AuditMark | null): Promise<number | null>
  /** The newest entry; null before the first. */
  auditHead(): Promise<AuditMark | null>
  /** Whether the log has this entry, or has had it: it may have been pruned. */
  hasAudit(mark: AuditMark): Promise<boolean>

  // retention
  /** The newest change that has been pruned: a reader that has not got so far needs a snapshot. */
  oldestPosition(): Promise<number>
  /**
   * Drops changes and audit entries older than these times, at most `limit` entries' worth, never the newest; the
   * chain stays verifiable. Returns how many went: 0 when there is nothing left to do.
   */
  pruneLogs(of: { changesBefore: number; auditBefore: number; limit: number }, act: Act): Promise<number>
  /**
   * Looks at `limit` certificates after row `from` and drops those that expired before a time, but not revoked ones nor
   * the newest of a device. `next` is where to go on, null at the end.
   */
  pruneCertificates(
    of: { from: number; expiredBefore: number; limit: number },
    act: Act,
  ): Promise<{ next: number | null; pruned: number }>

  counts(now: number): Promise<StatusCounts>
  /** Commits of this instance since it was opened, and the intents that they held. */
  commits(): { readonly groups: number; readonly intents: number }
  close(): Promise<void>
}

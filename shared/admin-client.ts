import { readFileSync } from 'node:fs'
import type {
  ApiTokenReply,
  ApiTokenRequest,
  ApiTokenView,
  AuditVerdict,
  AuditView,
  BatchReport,
  BatchRequest,
  BatchView,
  BrokerView,
  CaTree,
  CertificateReply,
  ClaimReply,
  ClaimRequest,
  CompromisedKeyPage,
  CompromiseReply,
  CutOverRequest,
  DeviceDecision,
  DeviceDetail,
  DevicePage,
  DevicePolicyView,
  DeviceRequest,
  DeviceView,
  EventMessage,
  Explanation,
  FactorReply,
  FactorRequest,
  FactorScope,
  FactorView,
  FleetPolicyView,
  FleetProfile,
  FleetRequest,
  FleetView,
  ImportReply,
  ImportRequest,
  Invitation,
  InvitationRequest,
  IssuerRequests,
  ManufacturedReply,
  ManufacturedRequest,
  ManufacturerRequest,
  ManufacturerView,
  PlanRequest,
  PlanView,
  PolicyAnswer,
  PolicyPreview,
  PolicyQuestion,
  ProfileRequest,
  QuarantineRequest,
  QuarantineView,
  Receipt,
  RolloverRequest,
  RolloverStatus,
  RolloverView,
  RotationProgress,
  RotationRequest,
  RotationView,
  ServiceRequest,
  StatusView,
  Timeline,
  TokenReply,
  TokenRequest,
  TokenView,
} from './api.ts'
import { MusterError } from './errors.ts'
import { readSecretFile } from './files.ts'
import { type JsonClientOptions, openJsonClient } from './json-client.ts'
import { readLines } from './json-lines.ts'
import type { OperatorProfile } from './layout.ts'
import type { Policy } from './policy/schema.ts'

export interface DeviceQuery {
  readonly fleet?: string | undefined
  readonly batch?: string | undefined
  readonly state?: string | undefined
  /** The `next` of the page before. */
  readonly after?: string | undefined
  readonly limit?: number | undefined
}

export interface EventsQuery {
  readonly after?: number | undefined
  /** That `after` is of. */
  readonly epoch?: string | undefined
  readonly device?: string | undefined
  readonly follow?: 'true' | 'false' | undefined
}

export interface AuditQuery {
  /** Sequence of the last entry that is known already. */
  readonly after?: number | undefined
  readonly limit?: number | undefined
}

/** Added to the time a long poll may take, so that the server answers first, ms. */
const REPLY_GRACE_MS = 15_000

/**
 * The admin API, one method a route. Every method throws a MusterError with the code of the server's problem
 * document, or `unreachable`.
 */
export type AdminClient = ReturnType<typeof openAdminClient>

/**
 * @param access how to reach the API: an operator's profile (its files are read once, here), or PEM texts
 * @throws MusterError not_found (a file of the profile), key_file_insecure
 */
export function openAdminClient(access: OperatorProfile | JsonClientOptions) {
  const client = openJsonClient('admin' in access ? withFiles(access) : access)
  const get = <Reply>(path: string) => client.send<Reply>('GET', path)
  const post = <Reply>(path: string, body: unknown = {}) => client.send<Reply>('POST', path, body)
  const remove = (path: string) => client.send<void>('DELETE', path)

  return {
    url: client.url,
    status: () => get<StatusView>('/v1/status'),

    createFleet: (fleet: FleetRequest) => post<FleetView>('/v1/fleets', fleet),
    listFleets: () => get<FleetView[]>('/v1/fleets'),
    showQuarantine: (fleet: string) =>
      get<QuarantineView>(`/v1/fleets/${encodeURIComponent(fleet)}/quarantine`),
    setQuarantine: (fleet: string, request: QuarantineRequest) =>
      client.send<QuarantineView>('PUT', `/v1/fleets/${encodeURIComponent(fleet)}/quarantine`, request),
    showProfile: (fleet: string) => get<FleetProfile>(`/v1/fleets/${encodeURIComponent(fleet)}/profile`),
    /** What the profile leaves out is as in a new fleet. */
    setProfile: (fleet: string, profile: ProfileRequest) =>
      client.send<FleetProfile>('PUT', `/v1/fleets/${encodeURIComponent(fleet)}/profile`, profile),
    showFleetPolicy: (fleet: string) =>
      get<FleetPolicyView>(`/v1/fleets/${encodeURIComponent(fleet)}/policy`),
    setFleetPolicy: (fleet: string, policy: Policy) =>
      client.send<FleetPolicyView>('PUT', `/v1/fleets/${encodeURIComponent(fleet)}/policy`, policy),
    /** What the policy would take from the devices of the fleet; nothing is changed. */
    previewFleetPolicy: (fleet: string, policy: Policy) =>
      post<PolicyPreview>(`/v1/fleets/${encodeURIComponent(fleet)}/policy/preview`, policy),
    showDevicePolicy: (device: string) =>
      get<DevicePolicyView>(`/v1/devices/${encodeURIComponent(device)}/policy`),
    /** In the place of what its fleet allows. */
    setDevicePolicy: (device: string, policy: Policy) =>
      client.send<DevicePolicyView>('PUT', `/v1/devices/${encodeURIComponent(device)}/policy`, policy),
    removeDevicePolicy: (device: string) => remove(`/v1/devices/${encodeURIComponent(device)}/policy`),
    showFactor: (scope: FactorScope) => get<FactorView>(factorPath(scope)),
    /** The password, if one was made, is in the reply this once. */
    setFactor: (scope: FactorScope, request: FactorRequest) =>
      client.send<FactorReply>('PUT', factorPath(scope), request),
    clearFactor: (scope: FactorScope) => client.send<FactorView>('DELETE', factorPath(scope)),
    checkPolicy: (question: PolicyQuestion) => post<PolicyAnswer>('/v1/policies/check', question),
    /** An empty value takes an attribute away. */
    tagDevice: (device: string, attributes: Readonly<Record<string, string>>) =>
      post<DevicePolicyView>(`/v1/devices/${encodeURIComponent(device)}/attributes`, { attributes }),
    createBatch: (batch: BatchRequest) => post<BatchView>('/v1/batches', batch),
    /** By the SHA-256 of their SubjectPublicKeyInfos; at most 900 at a time. */
    compromiseKeys: (keys: readonly string[]) => post<CompromiseReply>('/v1/keys/compromised', { keys }),
    listCompromisedKeys: (page: { after?: string; limit?: number } = {}) =>
      get<CompromisedKeyPage>(`/v1/keys/compromised${query({ ...page })}`),
    beginRotation: (rotation: RotationRequest) => post<RotationView>('/v1/rotations', rotation),
    listRotations: () => get<RotationView[]>('/v1/rotations'),
    showRotation: (id: string) => get<RotationProgress>(`/v1/rotations/${encodeURIComponent(id)}`),
    batchReport: (id: string) => get<BatchReport>(`/v1/batches/${encodeURIComponent(id)}/report`),
    listBatches: () => get<BatchView[]>('/v1/batches'),

    createToken: (token: TokenRequest) => post<TokenReply>('/v1/tokens', token),
    listTokens: (batch?: string) => get<TokenView[]>(`/v1/tokens${query({ batch })}`),
    /** A certificate that the devices of a batch share; cancelled like a token. */
    createClaim: (claim: ClaimRequest) => post<ClaimReply>('/v1/claims', claim),
    addManufacturer: (manufacturer: ManufacturerRequest) =>
      post<ManufacturerView>('/v1/manufacturers', manufacturer),
    listManufacturers: () => get<ManufacturerView[]>('/v1/manufacturers'),
    /** At most `MANIFEST_SLICE` rows and 64 KiB; a refused row is no error, the reply says `applied: false`. */
    listManufactured: (id: string, list: ManufacturedRequest) =>
      post<ManufacturedReply>(`/v1/manufacturers/${encodeURIComponent(id)}/devices`, list),
    cancelManufacturer: (id: string) =>
      post<ManufacturerView>(`/v1/manufacturers/${encodeURIComponent(id)}/cancel`),
    cancelToken: (id: string) => post<TokenView>(`/v1/tokens/${encodeURIComponent(id)}/cancel`),

    listDevices: (page: DeviceQuery = {}) => get<DevicePage>(`/v1/devices${query({ ...page })}`),
    showDevice: (id: string) => get<DeviceDetail>(`/v1/devices/${encodeURIComponent(id)}`),
    /** At most `MANIFEST_SLICE` rows and 64 KiB; a refused row is no error, the reply says `applied: false`. */
    importDevices: (manifest: ImportRequest) => post<ImportReply>('/v1/devices/import', manifest),
    addDevice: (device: DeviceRequest) => post<DeviceView>('/v1/devices', device),
    approveDevice: (id: string, decision: DeviceDecision) =>
      post<DeviceView>(`/v1/devices/${encodeURIComponent(id)}/approve`, decision),
    rejectDevice: (id: string, decision: DeviceDecision) =>
      post<void>(`/v1/devices/${encodeURIComponent(id)}/reject`, decision),
    /** What happened to it and to what covers it, the newest at the end. */
    timeline: (id: string, page: { before?: number; limit?: number } = {}) =>
      get<Timeline>(`/v1/devices/${encodeURIComponent(id)}/timeline${query({ ...page })}`),
    /** Everything that happened after a sequence, and with `follow` what happens; until the signal. */
    events: (from: EventsQuery, signal: AbortSignal) =>
      readLines<EventMessage>(() => client.stream(`/v1/events${query({ ...from })}`, signal)),
    retireDevice: (id: string) => post<void>(`/v1/devices/${encodeURIComponent(id)}/retire`),
    /** The token enrolls this device once more, with a new key. */
    reissueDevice: (id: string, options: { expiresAt?: number } = {}) =>
      post<TokenReply>(`/v1/devices/${encodeURIComponent(id)}/reissue`, options),
    createService: (service: ServiceRequest) => post<CertificateReply>('/v1/services', service),

    proposePlan: (plan: PlanRequest) => post<PlanView>('/v1/plans', plan),
    /** `devices`: the count that the operator has confirmed. */
    applyPlan: (id: string, devices: number) =>
      post<PlanView>(`/v1/plans/${encodeURIComponent(id)}/apply`, { devices }),
    undoPlan: (id: string) => post<PlanView>(`/v1/plans/${encodeURIComponent(id)}/undo`),
    showPlan: (id: string) => get<PlanView>(`/v1/plans/${encodeURIComponent(id)}`),
    listPlans: () => get<PlanView[]>('/v1/plans'),
    /** Answers when every broker has applied the plan, at the latest after `waitMs`. */
    receipt: (id: string, waitMs = 10_000) =>
      client.send<Receipt>(
        'GET',
        `/v1/plans/${encodeURIComponent(id)}/receipt${query({ waitMs })}`,
        undefined,
        waitMs + REPLY_GRACE_MS,
      ),

    listBrokers: () => get<BrokerView[]>('/v1/brokers'),
    inviteBroker: (invitation: InvitationRequest = {}) =>
      post<Invitation>('/v1/brokers/invitations', invitation),
    forgetBroker: (id: string) => remove(`/v1/brokers/${encodeURIComponent(id)}`),

    /** A device id or a serial. */
    explain: (subject: string) => get<Explanation>(`/v1/explain/${encodeURIComponent(subject)}`),
    listAudit: (page: AuditQuery = {}) => get<AuditView[]>(`/v1/audit${query({ ...page })}`),
    verifyAudit: () => get<AuditVerdict>('/v1/audit/verify'),

    createApiToken: (token: ApiTokenRequest) => post<ApiTokenReply>('/v1/api-tokens', token),
    listApiTokens: () => get<ApiTokenView[]>('/v1/api-tokens'),
    cancelApiToken: (name: string) => remove(`/v1/api-tokens/${encodeURIComponent(name)}`),

    showCas: () => get<CaTree>('/v1/ca'),
    rolloverStatus: () => get<RolloverStatus>('/v1/ca/rollover'),
    startRollover: (rollover: RolloverRequest = {}) => post<RolloverView>('/v1/ca/rollover', rollover),
    /** For a root that is kept elsewhere: requests for the CAs that are to follow. */
    requestIssuers: () => post<IssuerRequests>('/v1/ca/rollover/request'),
    /** `threshold`: share of the devices that must have the new bundle, 0 to 1. */
    cutOverRollover: (gate: CutOverRequest = {}) => post<RolloverView>('/v1/ca/rollover/cut-over', gate),
    abortRollover: () => post<RolloverView>('/v1/ca/rollover/abort'),
    finishRollover: () => post<RolloverView>('/v1/ca/rollover/finish'),

    clearDemo: () => post<{ devices: number }>('/v1/demo/clear'),
    close: () => client.close(),
  }
}

/**
 * Reads `operator/profile.json`.
 * @throws MusterError not_found when there is none, config_invalid when it is not a profile
 */
export function readOperatorProfile(path: string): OperatorProfile {
  let profile: Partial<OperatorProfile> | null
  try {
    profile = JSON.parse(readFile(path))
  } catch (cause) {
    if (cause instanceof MusterError) throw cause
    throw new MusterError('config_invalid', `Cannot use the profile "${path}": it is not JSON`, { cause })
  }
  const { schemaVersion, admin, caFile, certificateFile, keyFile } = profile ?? {}
  if (schemaVersion !== 1 || !admin || !caFile || !certificateFile || !keyFile) {
    throw new MusterError('config_invalid', `Cannot use the profile "${path}": it is not one of this version`)
  }
  return { schemaVersion, admin, caFile, certificateFile, keyFile }
}

function withFiles(profile: OperatorProfile): JsonClientOptions {
  return {
    url: profile.admin,
    ca: readFile(profile.caFile),
    certificate: readFile(profile.certificateFile),
    key: reading(profile.keyFile, () => readSecretFile(profile.keyFile).toString('utf8')),
  }
}

function readFile(path: string): string {
  return reading(path, () => readFileSync(path, 'utf8'))
}

function reading(path: string, read: () => string): string {
  try {
    return read()
  } catch (cause) {
    if (cause instanceof MusterError) throw cause
    throw new MusterError('not_found', `Cannot read "${path}": ${(cause as NodeJS.ErrnoException).code}`, {
      cause, // fs throws nothing but errno exceptions for a path that is a string
    })
  }
}

/** `?a=1&b=2` of the entries that have a value; empty without any. */
function query(entries: Record<string, string | number | undefined>): string {
  const given = new URLSearchParams()
  for (const [name, value] of Object.entries(entries)) if (value !== undefined) given.set(name, String(value))
  return given.size === 0 ? '' : `?${given}`
}

function factorPath({ kind, id }: FactorScope): string {
  return `/v1/${kind}s/${encodeURIComponent(id)}/factor`
}

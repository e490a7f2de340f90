declare const brand: unique symbol
type Branded<Name extends string> = string & { readonly [brand]: Name }

export type DeviceId = Branded<'DeviceId'>
export type FleetId = Branded<'FleetId'>
export type BatchId = Branded<'BatchId'>

/** A service is recorded like a device of its own kind: one namespace, so that their client ids cannot meet. */
export type IdentityKind = 'device' | 'service'

export type DeviceState = 'expected' | 'pending' | 'active' | 'retired'
export type DeviceAction = 'enroll' | 'renew' | 'reissue' | 'approve' | 'reject' | 'retire' | 'connect'

/** Which states permit an action; whoever acts looks here first. */
export const ALLOWED = {
  enroll: ['expected'],
  renew: ['active'],
  reissue: ['expected', 'active', 'retired'],
  approve: ['pending'],
  reject: ['pending'],
  retire: ['expected', 'pending', 'active'],
  connect: ['active'],
} as const satisfies Record<DeviceAction, readonly DeviceState[]>

export function isAllowed(action: DeviceAction, state: DeviceState): boolean {
  return (ALLOWED[action] as readonly DeviceState[]).includes(state)
}

/** Stored states; *expired* is computed from notAfter and *held* from the holds, so neither is stored. */
export type CertificateState = 'reserved' | 'issued' | 'active' | 'superseded' | 'revoked'

/** The fleet that services belong to; no batch and no token can be made for it. */
export const SERVICES_FLEET = 'services' as FleetId

/** Letters, digits, `.`, `_`, `-`; at most 64: safe as MQTT client id, topic level, CN, URI path and file name. */
const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/

/** Names that every JavaScript object answers to, so that no id can be mistaken for one of them in a map. */
const RESERVED = new Set(Object.getOwnPropertyNames(Object.prototype))

function isId(text: string): boolean {
  return ID.test(text) && !RESERVED.has(text)
}

export function isDeviceId(text: string): text is DeviceId {
  return isId(text)
}

export function isFleetId(text: string): text is FleetId {
  return isId(text)
}

/** The operations of EST (RFC 7030 section 3.2.2): in a path a batch takes their place, so none has such a name. */
export const EST_OPERATIONS = [
  'cacerts',
  'simpleenroll',
  'simplereenroll',
  'fullcmc',
  'serverkeygen',
  'csrattrs',
] as const
export type EstOperation = (typeof EST_OPERATIONS)[number]

export function isBatchId(text: string): text is BatchId {
  return isId(text) && !EST_OPERATIONS.some((operation) => operation === text)
}

/** The JSON schema pattern of all three ids (a request with another form is refused at the edge). */
export const ID_PATTERN = ID.source

/** What Muster needs of a PKCS#11 module (OASIS PKCS#11 version 2.40), as a port: tests put another one behind it. */

/** Of a slot, a session, an object; a number of 64 bits where it does not fit into fewer. */
export type Handle = number | bigint

export interface TokenInfo {
  readonly label: string
  readonly serial: string
  /** CKF_…, see FLAG. */
  readonly flags: number
}

export interface Attribute {
  readonly type: number
  readonly value: Uint8Array
}

export interface SignRequest {
  readonly mechanism: number
  readonly key: Handle
  readonly data: Uint8Array
}

export interface KeyPairRequest {
  readonly mechanism: number
  readonly publicKey: readonly Attribute[]
  readonly privateKey: readonly Attribute[]
}

/** Each method is one function of the module, or the few that belong together. All reject with CryptokiError. */
export interface Cryptoki {
  /** Again in the same process it does nothing. */
  initialize(): Promise<void>
  /** Forgets every session, so that tokens are looked for anew. */
  finalize(): Promise<void>
  /** Slots with a token in them. */
  slots(): Promise<Handle[]>
  tokenInfo(slot: Handle): Promise<TokenInfo>
  /** One that may write: keys are made in it. */
  openSession(slot: Handle): Promise<Handle>
  closeSession(session: Handle): Promise<void>
  /** As the user; resolves also when the process has logged in before. */
  login(session: Handle, pin: string): Promise<void>
  find(session: Handle, template: readonly Attribute[]): Promise<Handle[]>
  /** Null where the object does not have one. */
  attribute(session: Handle, of: { object: Handle; type: number }): Promise<Buffer | null>
  sign(session: Handle, request: SignRequest): Promise<Buffer>
  generateKeyPair(session: Handle, request: KeyPairRequest): Promise<void>
}

/** A function of the module has answered with something else than CKR_OK. */
export class CryptokiError extends Error {
  readonly call: string
  /** CK_RV. */
  readonly rv: number

  constructor(call: string, rv: number) {
    super(`${call} answered ${nameOf(rv)}`)
    this.name = 'CryptokiError'
    this.call = call
    this.rv = rv
  }
}

/** Return values that something follows from. */
export const RV = {
  CKR_OK: 0x00,
  CKR_GENERAL_ERROR: 0x05,
  CKR_FUNCTION_FAILED: 0x06,
  CKR_ATTRIBUTE_SENSITIVE: 0x11,
  CKR_ATTRIBUTE_TYPE_INVALID: 0x12,
  CKR_DEVICE_ERROR: 0x30,
  CKR_DEVICE_MEMORY: 0x31,
  CKR_DEVICE_REMOVED: 0x32,
  CKR_KEY_HANDLE_INVALID: 0x60,
  CKR_KEY_TYPE_INCONSISTENT: 0x63,
  CKR_KEY_FUNCTION_NOT_PERMITTED: 0x68,
  CKR_MECHANISM_INVALID: 0x70,
  CKR_OBJECT_HANDLE_INVALID: 0x82,
  CKR_OPERATION_ACTIVE: 0x90,
  CKR_PIN_INCORRECT: 0xa0,
  CKR_PIN_INVALID: 0xa1,
  CKR_PIN_LEN_RANGE: 0xa2,
  CKR_PIN_EXPIRED: 0xa3,
  CKR_PIN_LOCKED: 0xa4,
  CKR_SESSION_CLOSED: 0xb0,
  CKR_SESSION_COUNT: 0xb1,
  CKR_SESSION_HANDLE_INVALID: 0xb3,
  CKR_TOKEN_NOT_PRESENT: 0xe0,
  CKR_USER_ALREADY_LOGGED_IN: 0x100,
  CKR_USER_NOT_LOGGED_IN: 0x101,
  CKR_USER_PIN_NOT_INITIALIZED: 0x102,
  CKR_CRYPTOKI_NOT_INITIALIZED: 0x190,
  CKR_CRYPTOKI_ALREADY_INITIALIZED: 0x191,
} as const

const NAMES = new Map<number, string>(Object.entries(RV).map(([name, rv]) => [rv, name]))

function nameOf(rv: number): string {
  return NAMES.get(rv) ?? `0x${rv.toString(16)}`
}

/** Flags of CK_TOKEN_INFO. */
export const FLAG = { userPinFinalTry: 0x20000, userPinLocked: 0x40000 } as const

export const CKA = {
  class: 0x000,
  token: 0x001,
  private: 0x002,
  label: 0x003,
  keyType: 0x100,
  id: 0x102,
  sensitive: 0x103,
  sign: 0x108,
  verify: 0x10a,
  modulus: 0x120,
  publicExponent: 0x122,
  extractable: 0x162,
  ecParams: 0x180,
  ecPoint: 0x181,
} as const

export const CKO = { publicKey: 2, privateKey: 3 } as const
export const CKM = { rsaPkcs: 0x0001, ecKeyPairGen: 0x1040, ecdsa: 0x1041 } as const

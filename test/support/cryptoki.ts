/** A security module that lies in memory and fails as it is told to; its signatures are real. */
import {
  constants,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  privateEncrypt,
  randomBytes,
} from 'node:crypto'
import {
  type Attribute,
  CKA,
  CKM,
  CKO,
  type Cryptoki,
  CryptokiError,
  type Handle,
  RV,
} from '../../enrollment/ca/pkcs11/cryptoki.ts'

interface StoredKey {
  readonly label: string
  readonly id: Buffer
  readonly key: KeyObject
}

/** Making an RSA key takes longest of all: every module has the same ones. */
const POOL: KeyObject[] = []

/** What the test turns. */
export class FakeModule implements Cryptoki {
  readonly keys: StoredKey[] = []
  readonly calls: string[] = []
  pin = '1234'
  flags = 0
  isPresent = true
  /** Errors of the next calls of a function, in order. */
  readonly failures = new Map<string, number[]>()
  /** Signatures wait for it. */
  gate: Promise<void> = Promise.resolve()
  /** Called for each signature, to spoil it. */
  spoil: (signature: Buffer) => Buffer = (signature) => signature
  concurrent = 0
  mostConcurrent = 0
  #session = 0
  #isLoggedIn = false

  /** An RSA key: node:crypto has no ECDSA over a hash that was made elsewhere, as tokens have. */
  add(label: string, id = randomBytes(8)): StoredKey {
    const place = this.keys.length
    POOL[place] ??= generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey
    const stored = { label, id, key: POOL[place] }
    this.keys.push(stored)
    return stored
  }

  /** As when the token is taken out: sessions and logins are gone. */
  loseSession(): void {
    this.#session++
    this.#isLoggedIn = false
  }

  async initialize(): Promise<void> {
    await this.#call('C_Initialize')
  }

  async finalize(): Promise<void> {
    await this.#call('C_Finalize')
    this.loseSession()
  }

  async slots(): Promise<Handle[]> {
    await this.#call('C_GetSlotList')
    return this.isPresent ? [7] : []
  }

  async tokenInfo() {
    await this.#call('C_GetTokenInfo')
    return { label: 'ca', serial: '0001', flags: this.flags }
  }

  async openSession(): Promise<Handle> {
    await this.#call('C_OpenSession')
    return ++this.#session
  }

  async closeSession(session: Handle): Promise<void> {
    await this.#call('C_CloseSession')
    if (session === this.#session) this.loseSession()
  }

  async login(_session: Handle, pin: string): Promise<void> {
    await this.#call('C_Login')
    if (pin !== this.pin) throw new CryptokiError('C_Login', RV.CKR_PIN_INCORRECT)
    this.#isLoggedIn = true
  }

  async find(session: Handle, template: readonly Attribute[]): Promise<Handle[]> {
    await this.#inSession('C_FindObjects', session)
    const wanted = new Map(template.map(({ type, value }) => [type, Buffer.from(value)]))
    const isPrivate = wanted.get(CKA.class)?.readUInt8() === CKO.privateKey
    const [label, id] = [wanted.get(CKA.label)?.toString(), wanted.get(CKA.id)]
    return this.keys.flatMap((key, index) =>
      (label ?? key.label) === key.label && (id ?? key.id).equals(key.id)
        ? [2 * index + (isPrivate ? 1 : 0) + 1]
        : [],
    )
  }

  async attribute(
    session: Handle,
    { object, type }: { object: Handle; type: number },
  ): Promise<Buffer | null> {
    await this.#inSession('C_GetAttributeValue', session)
    const { key, id } = this.#stored(object)
    if (type === CKA.id) return id
    const { n = '', e = '' } = createPublicKey(key).export({ format: 'jwk' })
    if (type === CKA.modulus) return Buffer.from(n, 'base64url')
    return type === CKA.publicExponent ? Buffer.from(e, 'base64url') : null
  }

  async sign(
    session: Handle,
    request: { mechanism: number; key: Handle; data: Uint8Array },
  ): Promise<Buffer> {
    this.mostConcurrent = Math.max(this.mostConcurrent, ++this.concurrent)
    try {
      await this.#inSession('C_Sign', session)
      await this.gate
      if (request.mechanism !== CKM.rsaPkcs)
        throw new CryptokiError('C_SignInit', RV.CKR_KEY_TYPE_INCONSISTENT)
      const { key } = this.#stored(request.key)
      return this.spoil(privateEncrypt({ key, padding: constants.RSA_PKCS1_PADDING }, request.data))
    } finally {
      this.concurrent--
    }
  }

  async generateKeyPair(
    session: Handle,
    { privateKey }: { privateKey: readonly Attribute[] },
  ): Promise<void> {
    await this.#inSession('C_GenerateKeyPair', session)
    const value = (type: number) => Buffer.from(privateKey.find((one) => one.type === type)?.value ?? [])
    this.add(value(CKA.label).toString(), value(CKA.id))
  }

  #stored(object: Handle): StoredKey {
    const stored = this.keys[Math.floor((Number(object) - 1) / 2)]
    if (stored === undefined) throw new CryptokiError('C_SignInit', RV.CKR_KEY_HANDLE_INVALID)
    return stored
  }

  async #inSession(name: string, session: Handle): Promise<void> {
    await this.#call(name)
    if (session !== this.#session) throw new CryptokiError(name, RV.CKR_SESSION_HANDLE_INVALID)
    if (!this.#isLoggedIn) throw new CryptokiError(name, RV.CKR_USER_NOT_LOGGED_IN)
  }

  async #call(name: string): Promise<void> {
    this.calls.push(name)
    const rv = this.failures.get(name)?.shift()
    if (rv !== undefined) throw new CryptokiError(name, rv)
  }
}

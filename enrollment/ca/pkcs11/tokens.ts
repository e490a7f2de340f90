import { randomBytes } from 'node:crypto'
import { isMusterError, MusterError } from '#shared/errors'
import { readSecretFile } from '#shared/files'
import type { Signer } from '../signer.ts'
import { CKA, type Cryptoki, CryptokiError, RV } from './cryptoki.ts'
import { Lane } from './lane.ts'
import { schemeOf } from './scheme.ts'
import { type Session, Token } from './token.ts'
import { findKey, makeKey, readPublicKey } from './token-key.ts'
import { formatKeyUri, type KeyUri, parseKeyUri } from './uri.ts'

export interface TokensDeps {
  /** Opens a module by its path. @throws MusterError unsupported, config_invalid, key_file_insecure */
  load(path: string): Cryptoki
  /** For keys whose URI names no file with it. @throws MusterError passphrase_wrong, key_file_insecure */
  pin(): string
  now(): number
  /** Longest that a signature may take, ms. */
  readonly deadlineMs?: number
}

/** A key in a token, with the URI that names it alone. */
export interface TokenKey {
  readonly uri: string
  readonly signer: Signer
  readonly isNew: boolean
}

/** The security modules that this process uses: one session a token, one caller at a time a module. */
export class Tokens {
  readonly #deps: TokensDeps
  readonly #modules = new Map<string, { module: Cryptoki; lane: Lane }>()
  readonly #tokens = new Map<string, Token>()

  constructor(deps: TokensDeps) {
    this.#deps = deps
  }

  /**
   * The key that a certificate is for. Nothing is asked of the token yet: `prove` does that at the start.
   * @throws MusterError config_invalid, unsupported, key_file_insecure
   */
  signer(text: string, spki: Buffer): TokenSigner {
    const uri = parseKeyUri(text)
    return tokenSigner({ uri, spki, token: this.#token(uri) })
  }

  /**
   * The key that a URI names; made in the token when there is none and it has a label.
   * @throws MusterError as `Token.use` and `TokenSigner.prove`
   */
  async take(text: string): Promise<TokenKey> {
    const uri = parseKeyUri(text)
    const token = this.#token(uri)
    const { isNew, id, spki } = await token.use((session) => findOrMake(session, uri))
    const found = { ...uri, id }
    const signer = tokenSigner({ uri: found, spki, token })
    await signer.prove()
    return { uri: formatKeyUri(found), signer, isNew }
  }

  /** Makes a key beside another one, in the same token and under the same label. */
  takeNext(text: string): Promise<TokenKey> {
    return this.take(formatKeyUri({ ...parseKeyUri(text), id: randomBytes(16) }))
  }

  /** Waits for what is under way and ends the sessions. */
  async close(): Promise<void> {
    for (const token of this.#tokens.values()) await token.close()
  }

  #token(uri: KeyUri): Token {
    const { modulePath, token, serial, pinFile } = uri
    const name = JSON.stringify([modulePath, token, serial, pinFile])
    const known = this.#tokens.get(name)
    if (known) return known
    const opened = new Token(uri, {
      ...this.#module(modulePath),
      pin: pinFile === null ? this.#deps.pin : () => readPinFile(pinFile),
      now: this.#deps.now,
    })
    this.#tokens.set(name, opened)
    return opened
  }

  #module(path: string): { module: Cryptoki; lane: Lane } {
    const known = this.#modules.get(path)
    if (known) return known
    const opened = { module: this.#deps.load(path), lane: new Lane(this.#deps.deadlineMs) }
    this.#modules.set(path, opened)
    return opened
  }
}

/** With the id, because a rollover makes another key with the same label. */
async function findOrMake(
  session: Session,
  uri: KeyUri,
): Promise<{ isNew: boolean; id: Buffer; spki: Buffer }> {
  const { object } = uri
  const key = await findKey(session, { object, id: uri.id, half: 'private' })
  if (key !== null) {
    const id = uri.id ?? (await session.module.attribute(session.handle, { object: key, type: CKA.id }))
    if (id?.length) return { isNew: false, id, spki: await readPublicKey(session, { object, id }) }
    throw new MusterError('unsupported', `Cannot use the key "${object}" of the token: it has no id (CKA_ID)`)
  }
  if (!object) {
    throw new MusterError('not_found', 'Cannot make a key in the token: its URI has no object to call it by')
  }
  const id = uri.id ?? randomBytes(16)
  await makeKey(session, { object, id })
  return { isNew: true, id, spki: await readPublicKey(session, { object, id }) }
}

function readPinFile(path: string): string {
  try {
    return readSecretFile(path).toString('utf8').trim()
  } catch (cause) {
    if (isMusterError(cause)) throw cause
    throw new MusterError('passphrase_wrong', `Cannot read the PIN from "${path}": there is no such file`, {
      cause,
    })
  }
}

/** A signer that can be asked whether its token has the key. */
export interface TokenSigner extends Signer {
  /**
   * Signs something that is no certificate, and checks it with the public key.
   * @throws MusterError not_found, conflict, directory_unusable (another key), unavailable (or the token cannot
   *   sign with it), passphrase_wrong
   */
  prove(): Promise<void>
}

function tokenSigner({ uri, spki, token }: { uri: KeyUri; spki: Buffer; token: Token }): TokenSigner {
  const scheme = schemeOf(spki)
  const shown = uri.object ?? uri.id?.toString('hex')
  const fault = (code: 'directory_unusable' | 'not_found', why: string) =>
    new MusterError(code, `Cannot sign with the key "${shown}" of the token: ${why}`)
  const signed = async (session: Session, tbs: Uint8Array): Promise<Buffer> => {
    const key = await findKey(session, { object: uri.object, id: uri.id, half: 'private' })
    if (key === null) throw fault('not_found', 'there is none')
    const { mechanism } = scheme
    const data = scheme.prepare(tbs)
    const raw = await session.module.sign(session.handle, { mechanism, key, data }).catch(misfit)
    const signature = raw && scheme.finish(raw)
    // a token that errs, or was exchanged, must not be noticed by devices first
    if (signature !== null && scheme.isGood(tbs, signature)) return signature
    session.keys.clear()
    throw fault('directory_unusable', 'it is another one than in the certificate')
  }
  return {
    algorithm: scheme.algorithm,
    spki,
    sign: (tbs) => token.use((session) => signed(session, tbs)).catch((error) => refuseForNow(error, shown)),
    prove: async () => {
      const nonce = randomBytes(32).toString('hex')
      await token.use((session) => signed(session, Buffer.from(`muster key check 1\n${nonce}\n`)))
    },
  }
}

/** A key of another type cannot be the one that is looked for. */
function misfit(error: unknown): null {
  if (error instanceof CryptokiError && error.rv === RV.CKR_KEY_TYPE_INCONSISTENT) return null
  throw error
}

/** Whatever is the matter with the token, the request may come again. */
function refuseForNow(error: unknown, shown: string | undefined): never {
  if (isMusterError(error, 'unavailable')) throw error
  throw new MusterError('unavailable', `Cannot sign with the key "${shown}" of the token`, { cause: error })
}

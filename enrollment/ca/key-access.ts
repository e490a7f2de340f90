import { MusterError } from '#shared/errors'
import { readSecretFile } from '#shared/files'
import { generateKey, privateKeyPem, readPrivateKey } from '#shared/pki/keys'
import type { TokenSigner, Tokens } from './pkcs11/tokens.ts'
import { SCHEME } from './pkcs11/uri.ts'
import { keySigner, type Signer } from './signer.ts'

/** What opens the keys of CAs: a passphrase for those in files, sessions for those in security modules. */
export interface KeyAccess {
  readonly passphrase: string
  /** Null where no key can be in a token. */
  readonly tokens?: Tokens | null
  /** Asked before everything that an opened key signs, wherever it lies. @throws MusterError clock_wrong */
  checkClock?(): void
}

/** A key that a CA is made with, and what its key file is to say. */
export interface MadeKey {
  readonly signer: Signer
  readonly keyFile: string
}

/** True when a key file says where the key is, instead of having it. */
export function isTokenKey(keyFile: string): boolean {
  return keyFile.startsWith(SCHEME)
}

/**
 * Opens the key of a certificate by its file: a PKCS#8 PEM, encrypted, or one line with a PKCS#11 URI. A key in a file
 * says itself which key it is; of one in a token that is not known before it is proved.
 * @throws MusterError key_file_insecure, passphrase_wrong, config_invalid, unsupported
 */
export function openKey(path: string, { spki, access }: { spki: Buffer; access: KeyAccess }): Signer {
  const text = readSecretFile(path).toString('utf8')
  const signer = isTokenKey(text)
    ? tokensOf(access).signer(text.trim(), spki)
    : keySigner(readPrivateKey(text, access.passphrase))
  return {
    ...signer,
    sign: async (tbs) => {
      access.checkClock?.()
      return signer.sign(tbs)
    },
  }
}

/** Makes sure that a key can sign, as far as opening it has not. @throws MusterError as `TokenSigner.prove` */
export async function proveKey(signer: Signer): Promise<void> {
  if ('prove' in signer) await (signer as TokenSigner).prove() // nothing else has a method of that name
}

/** A new P-256 key in a file, or the one that a URI names. @throws MusterError as `Tokens.take` */
export async function makeKey(access: KeyAccess, uri?: string): Promise<MadeKey> {
  if (uri === undefined) {
    const key = generateKey()
    return { signer: keySigner(key), keyFile: privateKeyPem(key, access.passphrase) }
  }
  const { uri: named, signer } = await tokensOf(access).take(uri)
  return { signer, keyFile: `${named}\n` }
}

/** A key that was made and whose certificate was not. @throws MusterError as `openKey` and `Tokens.take` */
export async function reopenKey(access: KeyAccess, path: string): Promise<MadeKey> {
  const keyFile = readSecretFile(path).toString('utf8')
  if (isTokenKey(keyFile)) return { signer: (await tokensOf(access).take(keyFile.trim())).signer, keyFile }
  return { signer: keySigner(readPrivateKey(keyFile, access.passphrase)), keyFile }
}

/** A new key where another one is: in a file, or in the same token. @throws MusterError as `Tokens.take` */
export async function makeNextKey(access: KeyAccess, path: string): Promise<MadeKey> {
  const text = readSecretFile(path).toString('utf8')
  if (!isTokenKey(text)) return makeKey(access)
  const { uri, signer } = await tokensOf(access).takeNext(text.trim())
  return { signer, keyFile: `${uri}\n` }
}

function tokensOf({ tokens }: KeyAccess): Tokens {
  if (tokens) return tokens
  throw new MusterError('unsupported', 'Cannot use a key in a token: this command knows keys in files only')
}

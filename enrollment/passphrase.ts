import { existsSync, readdirSync } from 'node:fs'
import { dirname } from 'node:path'
import { MusterError } from '#shared/errors'
import { readCredential, readSecretFile, writeSecretFile } from '#shared/files'
import type { PassphraseSource, SecretSource } from './config.ts'

/**
 * The passphrase of the CA keys. Without a source of the operator's it is made at the first run and kept beside
 * the keys: that protects backups that leave it out, not this machine.
 * @throws MusterError passphrase_wrong, key_file_insecure
 */
export function readPassphrase(source: PassphraseSource, random: (octets: number) => Buffer): string {
  if (source.from === 'text') return source.text
  if (source.from === 'made' && !existsSync(source.path)) return makePassphrase(source.path, random)
  return readSecret(source, 'passphrase')
}

/** The PIN of a token whose keys name no `pin-source`. @throws MusterError passphrase_wrong, key_file_insecure */
export function readPin(source: SecretSource | null): string {
  if (source !== null) return source.from === 'text' ? source.text : readSecret(source, 'PIN')
  throw new MusterError(
    'passphrase_wrong',
    'Cannot open the CA: there is no PIN for its token; fix: set MUSTER_PKCS11_PIN_FILE to the file that holds it',
  )
}

/** A secret ends with its line. */
function readSecret({ from, path }: { from: string; path: string }, what: 'passphrase' | 'PIN'): string {
  if (!existsSync(path)) throw unreadable(`the ${what} file "${path}" does not exist`)
  const octets = from === 'credential' ? readCredential(path) : readSecretFile(path)
  const text = octets.toString('utf8').trim()
  if (text !== '') return text
  throw unreadable(`the ${what} file "${path}" is empty`)
}

function unreadable(why: string): MusterError {
  return new MusterError('passphrase_wrong', `Cannot open the CA: ${why}`)
}

function makePassphrase(path: string, random: (octets: number) => Buffer): string {
  const hasKeys = readdirSync(dirname(path)).some((name) => name.endsWith('.key'))
  if (hasKeys) {
    throw new MusterError(
      'passphrase_wrong',
      `Cannot open the CA: its passphrase is not in "${path}"; fix: set MUSTER_CA_PASSPHRASE_FILE to the file that holds it`,
    )
  }
  const text = random(32).toString('base64url')
  writeSecretFile(path, `${text}\n`)
  return text
}

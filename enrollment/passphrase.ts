import { existsSync, readdirSync } from 'node:fs'
import { dirname } from 'node:path'
import { MusterError } from '#shared/errors'
import { readSecretFile, writeSecretFile } from '#shared/files'
import type { PassphraseSource } from './config.ts'

/**
 * The passphrase of the CA keys. Without a source of the operator's it is made at the first run and kept beside
 * the keys: that protects backups that leave it out, not this machine.
 * @throws MusterError passphrase_wrong, key_file_insecure
 */
export function readPassphrase(source: PassphraseSource, random: (octets: number) => Buffer): string {
  if (source.from === 'text') return source.text
  if (source.from === 'made' && !existsSync(source.path)) return makePassphrase(source.path, random)
  if (!existsSync(source.path)) {
    throw new MusterError(
      'passphrase_wrong',
      `Cannot open the CA: the passphrase file "${source.path}" does not exist`,
    )
  }
  const text = readSecretFile(source.path).toString('utf8').trim()
  if (text !== '') return text
  throw new MusterError(
    'passphrase_wrong',
    `Cannot open the CA: the passphrase file "${source.path}" is empty`,
  )
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

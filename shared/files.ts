import {
  closeSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { MusterError } from './errors.ts'

/**
 * Replaces a file so that after a crash it holds either the old or the new content, whole:
 * written beside it, synced, renamed, and the directory synced.
 */
export function writeFileDurably(path: string, content: string | Uint8Array, mode = 0o644): void {
  const beside = `${path}.${process.pid}.new`
  rmSync(beside, { force: true }) // left by a crash, or put there by somebody else
  const file = openSync(beside, 'wx', mode) // never through a link, never with the mode of what was there
  try {
    const bytes = Buffer.from(content)
    for (let offset = 0; offset < bytes.length; ) offset += writeSync(file, bytes, offset)
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
  renameSync(beside, path)
  syncDirectory(dirname(path))
}

/** Makes a rename or an unlink in the directory survive a power cut. */
export function syncDirectory(path: string): void {
  const directory = openSync(path, 'r')
  try {
    fsyncSync(directory)
  } finally {
    closeSync(directory)
  }
}

/**
 * Reads a file that only its owner may read.
 * @throws MusterError key_file_insecure when group or others have any right, or another user owns it
 */
export function readSecretFile(path: string): Buffer {
  const { mode, uid } = statSync(path)
  const own = process.getuid?.()
  if (own !== undefined && uid !== own) {
    throw new MusterError(
      'key_file_insecure',
      `Cannot use "${path}": user ${uid} owns it; fix: chown ${own} ${path}`,
    )
  }
  if (process.platform !== 'win32' && (mode & 0o077) !== 0) {
    const shown = (mode & 0o777).toString(8).padStart(4, '0')
    throw new MusterError(
      'key_file_insecure',
      `Cannot use "${path}": its mode is ${shown}; fix: chmod 600 ${path}`,
    )
  }
  return readFileSync(path)
}

/**
 * Reads a credential that systemd has put into `$CREDENTIALS_DIRECTORY`. For a service with a user of its own that
 * file is root's, and an access list lets the user read it, whose mask stands where the rights of the group would.
 * @throws MusterError key_file_insecure when others have any right, the group may write, or another user owns it
 */
export function readCredential(path: string): Buffer {
  const { mode, uid } = statSync(path)
  const own = process.getuid?.()
  const isForeign = own !== undefined && uid !== own && uid !== 0
  if (isForeign || (mode & 0o027) !== 0) {
    throw new MusterError('key_file_insecure', `Cannot use "${path}": it is not as systemd makes credentials`)
  }
  return readFileSync(path)
}

/** Writes a file that only its owner may read, durably. */
export function writeSecretFile(path: string, content: string | Uint8Array): void {
  writeFileDurably(path, content, 0o600)
}

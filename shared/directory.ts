import { existsSync, mkdirSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { MusterError } from './errors.ts'

const SAYS = {
  EACCES: 'no permission to write',
  EPERM: 'no permission to write',
  EROFS: 'it is read-only',
  EEXIST: 'a file has that name',
  ENOTDIR: 'a part of it is a file',
  ENOENT: 'no directory can be made there',
}

/**
 * Makes a directory that only its owner enters, and those above it that are missing; content with one that is there.
 * (Where a file system says ENOENT below a directory that exists, as /proc does, Node's own recursive mkdir never
 * returns.)
 * @param option by which another one can be chosen
 * @throws MusterError directory_unusable
 */
export function makeDirectory(path: string, option = '--data'): void {
  try {
    make(path)
  } catch (cause) {
    throw directoryUnusable(path, { cause, option })
  }
}

/** What fs said about a directory, as a sentence. */
export function directoryUnusable(
  path: string,
  { cause, option = '--data' }: { cause: unknown; option?: string },
): MusterError {
  const { code = 'it cannot be opened' } = cause as NodeJS.ErrnoException // fs throws errno exceptions for paths
  const reason = SAYS[code as keyof typeof SAYS] ?? code
  const message = `Cannot use "${path}": ${reason}; choose another with ${option}`
  return new MusterError('directory_unusable', message, { cause })
}

function make(path: string): void {
  const parent = dirname(path)
  if (parent !== path && !existsSync(parent)) make(parent)
  try {
    mkdirSync(path, { mode: 0o700 })
  } catch (cause) {
    if (!existsSync(path)) throw cause // EEXIST is said of a link to nowhere, too
    if (!statSync(path).isDirectory()) throw cause
  }
}

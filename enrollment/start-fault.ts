import { accessSync, constants, statfsSync } from 'node:fs'
import { isMusterError, MusterError } from '#shared/errors'
import { sqliteCode } from '#shared/sqlite'
import type { Config } from './config.ts'

/** Calls of the network, which say EACCES and the like as well. */
const NETWORK = ['listen', 'bind', 'connect']
/** Where less than this is left, SQLite calls whatever it cannot do an I/O error. */
const FULL_OCTETS = 1024 * 1024

type Fault = 'full' | 'read-only' | 'forbidden' | 'failing'

const FAULT_OF: Readonly<Record<string, Fault>> = {
  ENOSPC: 'full',
  EDQUOT: 'full',
  SQLITE_FULL: 'full',
  EROFS: 'read-only',
  SQLITE_READONLY: 'read-only',
  EACCES: 'forbidden',
  EPERM: 'forbidden',
  SQLITE_CANTOPEN: 'failing',
  SQLITE_IOERR: 'failing',
  EIO: 'failing',
}

const FIX: Readonly<Record<Fault, string>> = {
  full: 'no space is left; fix: make room (the first start needs 20 MiB, later ones 1 MiB) and start again',
  'read-only':
    'it is read-only; fix: mount it for writing (after errors of the disk: replace that) and start again',
  forbidden: 'no permission; fix: start as the user that owns it, or give it to this one (chown -R)',
  failing:
    'the disk fails; fix: look at the log of the kernel, copy the directory to another disk, and start there; what cannot be read comes back by: muster ca restore <backup>',
}

/**
 * What keeps a start from writing its files, as one sentence with a way out; any other error as it is. Whatever such a
 * start has left, the next one finishes or makes anew.
 */
export function startFault(error: unknown, { layout, journal }: Pick<Config, 'layout' | 'journal'>): unknown {
  const found = rootCause(error)
  if (found === null || (isMusterError(error, 'directory_unusable') && found.isNamed)) return error
  const directories = [layout.root, journal]
  const full = directories.find(isFull)
  const fault = found.fault === 'failing' ? faultOf(directories) : found.fault
  const path =
    (fault === 'full' ? full : undefined) ?? found.path ?? directories.find(isNotWritable) ?? layout.root
  return new MusterError('directory_unusable', `Cannot use "${path}" (${found.code}): ${FIX[fault]}`, {
    cause: error,
  })
}

interface Found {
  readonly code: string
  readonly fault: Fault
  readonly path: string | undefined
  /** The message says already which directory, and why. */
  readonly isNamed: boolean
}

function rootCause(error: unknown): Found | null {
  for (let each = error; each instanceof Error; each = each.cause) {
    const { code: errno, path, syscall } = each as NodeJS.ErrnoException // looked at, whatever it is
    const code = sqliteCode(each) ?? errno
    const known = Object.keys(FAULT_OF).find((name) => code === name || code?.startsWith(`${name}_`))
    if (code === undefined || known === undefined || NETWORK.includes(syscall ?? '')) continue
    const fault = FAULT_OF[known] as Fault // found there
    const isNamed = syscall === 'mkdir' && fault !== 'full' && fault !== 'failing' // makeDirectory says it
    return { code, fault, path, isNamed }
  }
  return null
}

/** SQLite says the same of a full disk, of one that is read-only, and of one that fails. */
function faultOf(directories: readonly string[]): Fault {
  if (directories.some(isFull)) return 'full'
  return directories.some(isNotWritable) ? 'read-only' : 'failing'
}

function isFull(path: string): boolean {
  try {
    const { bavail, bsize } = statfsSync(path)
    return bavail * bsize < FULL_OCTETS
  } catch {
    return false // not there yet, or worse: then another message says so
  }
}

function isNotWritable(path: string): boolean {
  try {
    accessSync(path, constants.W_OK)
    return false
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EROFS' // node:fs throws nothing else
  }
}

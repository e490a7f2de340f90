import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { type Static, Type } from 'typebox'
import { Value } from 'typebox/value'
import { MusterError } from '#shared/errors'
import { readSecretFile, syncDirectory, writeFileDurably, writeSecretFile } from '#shared/files'
import type { IssuerKind } from './profile.ts'
import { MAX_CRL_SHARDS } from './shard.ts'

/** What was fixed when the authority was created. */
const AuthorityFile = Type.Object(
  {
    schemaVersion: Type.Literal(1),
    trustDomain: Type.String(),
    httpBase: Type.String(),
    /** SHA-256 of the certificates, lower-case hex. */
    root: Type.String(),
    device: Type.String(),
    infrastructure: Type.String(),
    /** CRLs that share the certificates of the device CA; absent in what was created before there were any. */
    crlShards: Type.Optional(Type.Integer({ minimum: 1, maximum: MAX_CRL_SHARDS })),
  },
  { additionalProperties: false },
)
export type AuthorityFile = Static<typeof AuthorityFile>

/** A key and a certificate each. */
export const CA_FILES = ['root', 'device-ca', 'infrastructure-ca'] as const
export type CaFile = (typeof CA_FILES)[number]

/** The directory of the CAs: what lies in it, and under which rights. */
export interface CaDirectory {
  readonly path: string
  readonly authority: string
  /** There while the first creation has not ended: what lies beside it was never used and may be thrown away. */
  readonly creating: string
  certificate(ca: CaFile): string
  key(ca: CaFile): string
  /** Keys and certificates of the CAs that rollovers have brought, each under its id. */
  readonly generations: string
  generationCertificate(id: string): string
  generationKey(id: string): string
  /** Key of an issuing CA that is to follow and has no certificate yet. */
  waitingKey(kind: IssuerKind): string
}

export function caDirectory(path: string): CaDirectory {
  return {
    path,
    authority: join(path, 'authority.json'),
    creating: join(path, 'authority.creating'),
    certificate: (ca) => join(path, `${ca}.crt`),
    key: (ca) => join(path, `${ca}.key`),
    generations: join(path, 'generations'),
    generationCertificate: (id) => join(path, 'generations', `${id}.crt`),
    generationKey: (id) => join(path, 'generations', `${id}.key`),
    waitingKey: (kind) => join(path, 'generations', `next-${kind}-ca.key`),
  }
}

/**
 * Makes the directory when it is not there; only its owner may enter it.
 * @throws MusterError key_file_insecure (mode or owner), directory_unusable
 */
export function prepareDirectory({ path }: CaDirectory): void {
  if (!existsSync(path)) {
    mkdirSync(path, { recursive: true, mode: 0o700 })
    chmodSync(path, 0o700)
  }
  const { mode, uid } = statSync(path)
  const own = process.getuid?.()
  if (own !== undefined && uid !== own) {
    throw new MusterError(
      'key_file_insecure',
      `Cannot use "${path}": user ${uid} owns it; fix: chown ${own} ${path}`,
    )
  }
  if (process.platform !== 'win32' && (mode & 0o077) !== 0) {
    throw new MusterError(
      'key_file_insecure',
      `Cannot use "${path}": others may enter it; fix: chmod 700 ${path}`,
    )
  }
}

/** `absent` only when nothing says that there ever was an authority. @throws MusterError directory_unusable */
export function creationState(directory: CaDirectory): 'absent' | 'interrupted' | 'complete' {
  if (existsSync(directory.authority)) return 'complete'
  if (existsSync(directory.creating)) return 'interrupted'
  const found = CA_FILES.flatMap((ca) => [directory.key(ca), directory.certificate(ca)]).find(existsSync)
  if (found === undefined) return 'absent'
  throw unusable(directory, `"${found}" is there, but authority.json is missing; restore it from the backup`)
}

/** Marks the start of the creation and removes what an interrupted one has left. */
export function beginCreation(directory: CaDirectory): void {
  writeFileDurably(directory.creating, '')
  // by their beginning, because a write that was cut leaves `<file>.<pid>.new`
  const leftovers = readdirSync(directory.path).filter((name) =>
    CA_FILES.some((ca) => name.startsWith(`${ca}.`)),
  )
  for (const name of leftovers) rmSync(join(directory.path, name))
  syncDirectory(directory.path)
}

export function writeCa(directory: CaDirectory, files: { ca: CaFile; keyFile: string; pem: string }): void {
  writeSecretFile(directory.key(files.ca), files.keyFile)
  writeFileDurably(directory.certificate(files.ca), files.pem)
}

export function prepareGenerations(directory: CaDirectory): void {
  mkdirSync(directory.generations, { recursive: true, mode: 0o700 })
  syncDirectory(directory.path)
}

/** Stores a root whose key is kept elsewhere; it counts for nothing until the registry names it. */
export function writeRootOf(directory: CaDirectory, { id, pem }: { id: string; pem: string }): void {
  prepareGenerations(directory)
  writeFileDurably(directory.generationCertificate(id), pem)
}

/** Stores a CA of a rollover; it counts for nothing until the registry names it. */
export function writeGeneration(
  directory: CaDirectory,
  files: { id: string; keyFile: string; pem: string },
): void {
  prepareGenerations(directory)
  writeSecretFile(directory.generationKey(files.id), files.keyFile)
  writeFileDurably(directory.generationCertificate(files.id), files.pem)
}

/** The moment from which on the authority exists. */
export function writeAuthority(directory: CaDirectory, authority: AuthorityFile): void {
  writeFileDurably(directory.authority, `${JSON.stringify(authority, null, 2)}\n`)
}

export function endCreation(directory: CaDirectory): void {
  if (!existsSync(directory.creating)) return
  rmSync(directory.creating)
  syncDirectory(directory.path)
}

/** @throws MusterError directory_unusable */
export function readAuthority(directory: CaDirectory): AuthorityFile {
  const text = readCaFile(directory, directory.authority)
  try {
    const content: unknown = JSON.parse(text)
    if (Value.Check(AuthorityFile, content)) return content
  } catch (cause) {
    throw unusable(directory, 'authority.json is not JSON', cause)
  }
  throw unusable(directory, 'authority.json has another form than this version writes')
}

/** @throws MusterError directory_unusable when the file is missing */
export function readCaFile(directory: CaDirectory, path: string): string {
  if (!existsSync(path)) throw unusable(directory, `"${path}" is missing; restore it from the backup`)
  return readFileSync(path, 'utf8')
}

/**
 * Checks mode and owner of every key. The root's may be missing: it is only needed for a new issuing CA.
 * @throws MusterError key_file_insecure, directory_unusable
 */
export function checkKeyFiles(directory: CaDirectory): void {
  for (const ca of CA_FILES) {
    const path = directory.key(ca)
    if (ca === 'root' && !existsSync(path)) continue
    if (!existsSync(path)) throw unusable(directory, `"${path}" is missing; restore it from the backup`)
    readSecretFile(path)
  }
}

export function unusable({ path }: CaDirectory, what: string, cause?: unknown): MusterError {
  return new MusterError('directory_unusable', `Cannot open the authority in "${path}": ${what}`, { cause })
}

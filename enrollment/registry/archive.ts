/** A backup is one tar file (POSIX ustar): a manifest with the hash of every file, the manifest's own hash, the files. */
import { createHash } from 'node:crypto'
import {
  closeSync,
  existsSync,
  fstatSync,
  fsyncSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { MusterError } from '#shared/errors'
import { syncDirectory } from '#shared/files'

const BLOCK = 512
const CHUNK = 1024 * 1024
/** Eleven octal digits: 8 GiB. */
const MAX_OCTETS = 8 ** 11 - 1
/** What a backup holds: the registry, and files of the CA directory. */
const NAME = /^(?:manifest\.(?:json|sha256)|registry\.db|ca(?:\/[A-Za-z0-9][A-Za-z0-9._-]*){1,3})$/

export interface ManifestFile {
  readonly name: string
  readonly octets: number
  readonly sha256: string
}

export interface Manifest {
  readonly schemaVersion: 1
  /** Ms since 1970. */
  readonly madeAt: number
  /** The last commit of the registry that is in it. */
  readonly commit: number
  readonly files: readonly ManifestFile[]
}

/** A file to be put into the archive. */
export interface ArchiveFile {
  readonly name: string
  readonly path: string
}

/**
 * Writes an archive of mode 0600, whole or not at all.
 * @throws MusterError conflict when there is such a file
 */
export function writeArchive(
  path: string,
  contents: Omit<Manifest, 'schemaVersion' | 'files'> & { files: readonly ArchiveFile[] },
): Manifest {
  if (existsSync(path))
    throw new MusterError('conflict', `Cannot write the backup "${path}": there is such a file`)
  const beside = `${path}.${process.pid}.new`
  const out = openSync(beside, 'wx', 0o600)
  try {
    const files = contents.files.map((file) => ({ name: file.name, ...measure(file.path) }))
    const manifest: Manifest = { ...contents, schemaVersion: 1, files }
    const text = Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`)
    writeEntry(out, { name: 'manifest.json', content: text })
    const check = createHash('sha256').update(text).digest('hex')
    writeEntry(out, { name: 'manifest.sha256', content: Buffer.from(`${check}  manifest.json\n`) })
    for (const file of contents.files) copyEntry(out, file)
    writeSync(out, Buffer.alloc(2 * BLOCK))
    fsyncSync(out)
    renameSync(beside, path)
    syncDirectory(dirname(path))
    return manifest
  } finally {
    closeSync(out)
    rmSync(beside, { force: true })
  }
}

/** An archive whose every octet has been compared with the manifest. */
export interface Archive {
  readonly manifest: Manifest
  read(name: string): Buffer
  /** Writes a file of the archive to a path, mode 0600, durably. */
  extract(name: string, path: string): void
  close(): void
}

/** @throws MusterError not_found, check_failed when it is no backup, or not whole */
export function openArchive(path: string): Archive {
  if (!existsSync(path))
    throw new MusterError('not_found', `Cannot read the backup "${path}": there is no such file`)
  const file = openSync(path, 'r')
  try {
    const entries = readEntries(file, path)
    const bad = (why: string) => broken(path, why)
    const read = (name: string) => {
      const entry = entries.get(name)
      if (entry === undefined) throw bad(`it has no ${name}`)
      return Buffer.concat([...chunks(file, entry)])
    }
    const text = read('manifest.json')
    const check = createHash('sha256').update(text).digest('hex')
    if (!read('manifest.sha256').toString('utf8').startsWith(check)) throw bad('its manifest is damaged')
    const manifest = JSON.parse(text.toString('utf8')) as Manifest // its hash has been compared
    if (manifest.schemaVersion !== 1) throw bad('a newer version has written it')
    for (const { name, sha256 } of manifest.files) {
      const entry = entries.get(name)
      if (entry === undefined || hashOf(chunks(file, entry)) !== sha256)
        throw bad(`${name} is missing or damaged`)
    }
    const extract = (name: string, to: string) =>
      writeChunks(to, chunks(file, entries.get(name) ?? { offset: 0, octets: 0 }))
    return { manifest, read, extract, close: () => closeSync(file) }
  } catch (error) {
    closeSync(file)
    throw error
  }
}

interface Entry {
  readonly offset: number
  readonly octets: number
}

function readEntries(file: number, path: string): Map<string, Entry> {
  const { size } = fstatSync(file)
  const entries = new Map<string, Entry>()
  const header = Buffer.alloc(BLOCK)
  for (let at = 0; at + BLOCK <= size; ) {
    readSync(file, header, 0, BLOCK, at)
    if (header.every((octet) => octet === 0)) return entries
    const name = textOf(header, 0, 100)
    const octets = Number.parseInt(textOf(header, 124, 12), 8)
    const isWhole = Number.parseInt(textOf(header, 148, 8), 8) === sumOf(header)
    if (!isWhole || !NAME.test(name) || !Number.isSafeInteger(octets) || at + BLOCK + octets > size) break
    entries.set(name, { offset: at + BLOCK, octets })
    at += BLOCK + Math.ceil(octets / BLOCK) * BLOCK
  }
  throw broken(path, 'it is cut off, or no backup')
}

function textOf(header: Buffer, start: number, length: number): string {
  return (
    header
      .toString('latin1', start, start + length)
      .split('\0', 1)[0]
      ?.trim() ?? ''
  )
}

/** The sum of a header's octets, with spaces in place of the sum. */
function sumOf(header: Buffer): number {
  return header.reduce((sum, octet, index) => sum + (index >= 148 && index < 156 ? 0x20 : octet), 0)
}

function headerOf(name: string, octets: number): Buffer {
  if (octets > MAX_OCTETS || name.length > 99) throw new RangeError(`no room in a header for ${name}`)
  const header = Buffer.alloc(BLOCK)
  header.write(name, 0, 'latin1')
  header.write('0000600\0' + '0000000\0' + '0000000\0', 100, 'latin1')
  header.write(`${octets.toString(8).padStart(11, '0')}\0${'0'.repeat(11)}\0`, 124, 'latin1')
  header.write('        0', 148, 'latin1')
  header.write('ustar\x0000', 257, 'latin1')
  header.write(`${sumOf(header).toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return header
}

function writeEntry(out: number, { name, content }: { name: string; content: Buffer }): void {
  writeSync(out, headerOf(name, content.length))
  writeSync(out, content)
  writeSync(out, padding(content.length))
}

function copyEntry(out: number, { name, path }: ArchiveFile): void {
  const file = openSync(path, 'r')
  try {
    const { size } = fstatSync(file)
    writeSync(out, headerOf(name, size))
    for (const chunk of chunks(file, { offset: 0, octets: size })) writeSync(out, chunk)
    writeSync(out, padding(size))
  } finally {
    closeSync(file)
  }
}

function padding(octets: number): Buffer {
  return Buffer.alloc((BLOCK - (octets % BLOCK)) % BLOCK)
}

function measure(path: string): Omit<ManifestFile, 'name'> {
  const file = openSync(path, 'r')
  try {
    const { size } = fstatSync(file)
    return { octets: size, sha256: hashOf(chunks(file, { offset: 0, octets: size })) }
  } finally {
    closeSync(file)
  }
}

function hashOf(parts: Iterable<Buffer>): string {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(part)
  return hash.digest('hex')
}

function* chunks(file: number, { offset, octets }: Entry): Generator<Buffer> {
  for (let done = 0; done < octets; ) {
    const chunk = Buffer.alloc(Math.min(CHUNK, octets - done))
    const read = readSync(file, chunk, 0, chunk.length, offset + done)
    if (read === 0) return
    yield chunk.subarray(0, read)
    done += read
  }
}

function writeChunks(path: string, parts: Iterable<Buffer>): void {
  const out = openSync(path, 'w', 0o600)
  try {
    for (const part of parts) writeSync(out, part)
    fsyncSync(out)
  } finally {
    closeSync(out)
  }
}

function broken(path: string, why: string): MusterError {
  return new MusterError('check_failed', `Cannot use the backup "${path}": ${why}`)
}

import { closeSync, fsyncSync, ftruncateSync, openSync, readSync, rmSync, writeSync } from 'node:fs'
import { makeDirectory } from '#shared/directory'
import { MusterError } from '#shared/errors'
import { syncDirectory } from '#shared/files'
import type { Sqlite } from '#shared/sqlite'
import {
  checkOf,
  type JournalPlace,
  journalLine,
  readSegment,
  type SegmentHead,
  segmentPath,
  segmentPaths,
} from './journal-lines.ts'
import { type PlaceRow, placeRow } from './journal-place.ts'
import { captureRows, type RowCapture } from './row-capture.ts'

/** From this size on the next commit begins another segment, octets: a start reads the newest one. */
const SEGMENT_OCTETS = 16 * 1024 * 1024
/** No file system here has larger pages. */
const BLOCK_OCTETS = 65_536

/** The segment that is written to, up to where it is whole and on disk. */
interface Tail {
  readonly file: number
  whole: number
}

/**
 * Writes the journal of one database, of which this connection is the only writer. A group of intents is appended and
 * synced after it has run and before it is committed: what is committed is in the journal, and what the journal has
 * beyond the database is at most the one group whose commit was cut short, which nobody was told of.
 */
export class Journal {
  readonly #directory: string
  readonly #capture: RowCapture
  readonly #placeRow: PlaceRow
  readonly #schema: number
  #place: JournalPlace
  #tail: Tail | null
  /** Appended and not committed yet; its line ends at `end`. */
  #pending: { readonly place: JournalPlace; readonly end: number } | null = null
  /** True while the file may hold more than what is committed. */
  #isAhead = false

  /**
   * @param db brought up to the end of the journal
   * @throws MusterError directory_unusable when the journal is another database's
   */
  constructor(db: Sqlite, directory: string) {
    this.#directory = directory
    makeDirectory(directory, '--journal')
    this.#placeRow = placeRow(db)
    this.#place = this.#placeRow.read()
    this.#schema = db.pragma('user_version', { simple: true }) as number // SQLite stores a 32-bit integer here
    this.#tail = openTail(directory, { place: this.#place, schema: this.#schema })
    this.#capture = captureRows(db)
  }

  /** How many rows are captured; `forget` drops those after a mark. */
  mark(): number {
    return this.#capture.rows.length
  }

  forget(mark: number): void {
    this.#capture.rows.length = mark
  }

  /** True after a group that was not committed: then `settle` and `takeBack` come before the next one. */
  get isAhead(): boolean {
    return this.#isAhead
  }

  /**
   * Called in a transaction of its own. A commit whose sync failed is not in force, but its frames lie whole in the
   * WAL, where a start after a crash would find them; a commit of anything else writes over the first of them, and
   * the checks of the others then fit nothing. Until that is on disk the line has to stay: a start that finds the
   * commit without its line, or with another one, would have a journal that does not belong to it.
   */
  settle(): void {
    this.#placeRow.rewrite()
  }

  /** Called when `settle` is committed. @throws what the disk says */
  takeBack(): void {
    if (!this.#isAhead || this.#tail === null) return
    const { file, whole } = this.#tail
    ftruncateSync(file, whole)
    rewriteEnd({ file, whole })
    fsyncSync(file)
    this.#pending = null
    this.#isAhead = false
  }

  /** Called when a group begins, or begins again. */
  begin(): void {
    this.forget(0)
  }

  /** Called within the transaction, when the group has run. @throws what the disk says */
  append(at: number): void {
    const { rows } = this.#capture
    if (rows.length === 0) return
    const number = this.#place.number + 1
    const text = JSON.stringify({ number, at, rows })
    const place = { number, check: checkOf(this.#place.check, text) }
    const tail = this.#tailWithRoom()
    this.#isAhead = true
    const end = writeAt(tail, journalLine(place.check, text))
    this.#pending = { place, end }
    this.#placeRow.write(place)
  }

  /** Called when the group is committed. */
  committed(): void {
    if (this.#pending === null || this.#tail === null) return
    this.#place = this.#pending.place
    this.#tail.whole = this.#pending.end
    this.#pending = null
    this.#isAhead = false
  }

  close(): void {
    if (this.#tail) closeSync(this.#tail.file)
    this.#tail = null
  }

  #tailWithRoom(): Tail {
    if (this.#tail && this.#tail.whole < SEGMENT_OCTETS) return this.#tail
    const { number, check } = this.#place
    const next = newSegment(this.#directory, {
      schemaVersion: 1,
      first: number + 1,
      previous: check,
      schema: this.#schema,
      tables: this.#capture.tables,
    })
    this.close()
    this.#tail = next
    return next
  }
}

/**
 * The kernel takes a page that it could not write for clean, and a later sync says nothing of it: the block that the
 * last good line shares with the one that failed is written again.
 */
function rewriteEnd({ file, whole }: Tail): void {
  const start = Math.max(0, whole - (whole % BLOCK_OCTETS || BLOCK_OCTETS))
  const octets = Buffer.alloc(whole - start)
  const read = readSync(file, octets, 0, octets.length, start)
  for (let done = 0; done < read; ) done += writeSync(file, octets, done, read - done, start + done)
}

/** Writes and syncs; returns where it ends. */
function writeAt({ file, whole }: Tail, text: string): number {
  const octets = Buffer.from(text)
  for (let done = 0; done < octets.length; )
    done += writeSync(file, octets, done, octets.length - done, whole + done)
  fsyncSync(file)
  return whole + octets.length
}

function newSegment(directory: string, head: SegmentHead): Tail {
  const path = segmentPath(directory, head.first)
  const tail = { file: openSync(path, 'w+', 0o600), whole: 0 }
  try {
    const text = JSON.stringify(head)
    tail.whole = writeAt(tail, journalLine(checkOf(head.previous, text), text))
    syncDirectory(directory)
    return tail
  } catch (error) {
    closeSync(tail.file)
    rmSync(path, { force: true })
    throw error
  }
}

/** The newest segment, without a line that was cut off; null when the next commit begins another one. */
function openTail(directory: string, at: { place: JournalPlace; schema: number }): Tail | null {
  const path = segmentPaths(directory).at(-1)
  if (path === undefined) return null
  const segment = readSegment(path)
  if (segment === null) {
    rmSync(path)
    return openTail(directory, at)
  }
  const { head, commits, wholeOctets } = segment
  const end = commits.at(-1)?.place ?? { number: head.first - 1, check: head.previous }
  if (end.number < at.place.number) return null // some of it was lost; a restore notices the gap
  if (end.number > at.place.number || end.check !== at.place.check) {
    throw new MusterError(
      'directory_unusable',
      `Cannot use the journal "${directory}": it is another registry's`,
    )
  }
  if (head.schema !== at.schema) return null
  const file = openSync(path, 'r+')
  ftruncateSync(file, wholeOctets)
  fsyncSync(file)
  return { file, whole: wholeOctets }
}

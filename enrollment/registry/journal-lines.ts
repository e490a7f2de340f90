/**
 * The journal: what every commit of the registry wrote, outside the database, so that an older copy of the database
 * can be brought up to date. A directory of segments, each a file of lines `<check> <JSON>`: a head, then one line a
 * commit. The check of a commit covers the check before it, so that no line can be lost, swapped or taken from another
 * journal unseen. It is no defence against somebody who can write to the directory.
 */
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { MusterError } from '#shared/errors'

/** What a column holds; a blob is written as a list of its base64. */
export type Cell = string | number | null | readonly [string]

/** A row as it is after the commit: table and columns in the head's order. A table `-t` names a deleted row by its key. */
export type JournalRow = readonly [table: string, ...cells: Cell[]]

export interface Columns {
  readonly columns: readonly string[]
  readonly key: readonly string[]
}

export interface SegmentHead {
  readonly schemaVersion: 1
  /** Number of the first commit. */
  readonly first: number
  /** Check of the commit before it. */
  readonly previous: string
  /** Version of the database's schema, which the columns belong to. */
  readonly schema: number
  readonly tables: Readonly<Record<string, Columns>>
}

export interface Commit {
  readonly number: number
  /** Ms since 1970. */
  readonly at: number
  readonly rows: readonly JournalRow[]
}

/** A place in the journal: the number of a commit and its check. */
export interface JournalPlace {
  readonly number: number
  readonly check: string
}

export const JOURNAL_BEGIN: JournalPlace = { number: 0, check: '0'.repeat(32) }

export interface Segment {
  readonly path: string
  readonly head: SegmentHead
  readonly commits: readonly { readonly commit: Commit; readonly place: JournalPlace }[]
  /** Where the last whole line ends, octets; what follows was cut off while it was written. */
  readonly wholeOctets: number
}

const NAME = /^\d{12}\.log$/
const CHECK_LENGTH = 32

export function segmentPath(directory: string, first: number): string {
  return join(directory, `${String(first).padStart(12, '0')}.log`)
}

/** Paths of the segments, oldest first. */
export function segmentPaths(directory: string): string[] {
  if (!existsSync(directory)) return []
  const names = readdirSync(directory).filter((name) => NAME.test(name))
  return names.sort().map((name) => join(directory, name))
}

/** Number of the first commit of a segment, by its name. */
export function firstOf(path: string): number {
  return Number.parseInt(path.slice(-'000000000000.log'.length), 10)
}

export function checkOf(previous: string, text: string): string {
  return createHash('sha256').update(`${previous} ${text}`).digest('hex').slice(0, CHECK_LENGTH)
}

export function journalLine(check: string, text: string): string {
  return `${check} ${text}\n`
}

/**
 * Reads a segment whose head says what comes before it. A last line that is cut off, or does not fit, was never
 * answered for: it is left out. Null when not even the head is whole.
 * @throws MusterError directory_unusable when a line in the middle does not fit
 */
export function readSegment(path: string): Segment | null {
  const content = readFileSync(path)
  const heading = lineAt(content, 0)
  const head = heading && readHead(heading)
  if (!heading || head === null) {
    if (heading && heading.end < content.length) throw damaged(path, firstOf(path))
    return null
  }
  const commits: { commit: Commit; place: JournalPlace }[] = []
  let place: JournalPlace = { number: head.first - 1, check: head.previous }
  let { end } = heading
  for (let line = lineAt(content, end); line !== null; line = lineAt(content, end)) {
    const commit = readCommit(line, place)
    if (commit === null) {
      if (line.end === content.length) break
      throw damaged(path, place.number + 1)
    }
    place = { number: commit.number, check: line.check }
    commits.push({ commit, place })
    end = line.end
  }
  return { path, head, commits, wholeOctets: end }
}

interface Line {
  readonly check: string
  readonly text: string
  /** Octets from the file's beginning to the line's end. */
  readonly end: number
}

function lineAt(content: Buffer, start: number): Line | null {
  const newline = content.indexOf(0x0a, start)
  if (newline < 0) return null
  const line = content.toString('utf8', start, newline)
  return { check: line.slice(0, CHECK_LENGTH), text: line.slice(CHECK_LENGTH + 1), end: newline + 1 }
}

function readHead({ check, text }: Line): SegmentHead | null {
  const head = readJson<SegmentHead>(text)
  return head?.schemaVersion === 1 && check === checkOf(head.previous, text) ? head : null
}

function readCommit({ check, text }: Line, before: JournalPlace): Commit | null {
  if (check !== checkOf(before.check, text)) return null
  const commit = readJson<Commit>(text)
  return commit?.number === before.number + 1 ? commit : null
}

/** What was written here and has the right check has the right form. */
function readJson<T>(text: string): T | null {
  try {
    return JSON.parse(text) as T // its check is compared by the callers
  } catch {
    return null
  }
}

function damaged(path: string, number: number): MusterError {
  return new MusterError(
    'directory_unusable',
    `Cannot read the journal "${path}": the line of commit ${number} is damaged`,
    { evidence: { commit: number } },
  )
}

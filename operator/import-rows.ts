import { MANIFEST_SLICE, type RowVerdict } from '#shared/api'
import type { Context } from './context.ts'
import { EXIT, type ExitCode } from './exit-codes.ts'
import { table } from './table.ts'

/** A request takes 64 KiB; the rest is for what is around the rows. */
const SLICE_OCTETS = 56 * 1024

/** A row of a file: what the plane is asked, or why the file does not say it. Rows count from 1, without the heading. */
export type Entry<Row> = { readonly row: number } & (
  | { readonly device: Row }
  | { readonly id: string; readonly fault: string }
)

interface Sent<Row> {
  readonly row: number
  readonly device: Row
}

interface Reply {
  readonly applied: boolean
  readonly rows: readonly RowVerdict[]
}

export interface Import<Row> {
  readonly entries: readonly Entry<Row>[]
  readonly dryRun: boolean
  /** Stands at the beginning of the document: where the rows went. */
  readonly into: Readonly<Record<string, string>>
  send(rows: Row[], dryRun: boolean): Promise<Reply>
}

/** Judges the whole file first, and writes only when no row is refused. */
export async function importRows<Row>(context: Context, of: Import<Row>): Promise<ExitCode> {
  const verdicts = new Map(of.entries.map((entry) => [entry.row, faultVerdict(entry)]))
  const rows = of.entries.flatMap((entry) => ('device' in entry ? [entry] : []))
  for (const { reply, slice } of await sendSlices(of, { rows, dryRun: true })) {
    note(verdicts, { slice, judged: reply.rows })
  }
  let written = 0
  if (!of.dryRun && refusedIn(verdicts) === 0) {
    for (const { reply, slice } of await sendSlices(of, { rows, dryRun: false })) {
      note(verdicts, { slice, judged: reply.rows })
      if (reply.applied) written += reply.rows.filter(({ verdict }) => verdict === 'added').length
    }
  }
  return answer(context, { of, written, verdicts: [...verdicts.values()] })
}

/** One request a slice; the first that is refused when it was to be written is the last. */
async function sendSlices<Row>(
  of: Import<Row>,
  { rows, dryRun }: { rows: readonly Sent<Row>[]; dryRun: boolean },
) {
  const replies = []
  for (const slice of slicesOf(rows)) {
    const reply = await of.send(
      slice.map(({ device }) => device),
      dryRun,
    )
    replies.push({ reply, slice })
    if (!dryRun && !reply.applied) break
  }
  return replies
}

function slicesOf<Row>(rows: readonly Sent<Row>[]): Sent<Row>[][] {
  const slices: Sent<Row>[][] = []
  let octets = Number.POSITIVE_INFINITY
  for (const row of rows) {
    const size = Buffer.byteLength(JSON.stringify(row.device)) + 1
    const last = slices.at(-1)
    if (last === undefined || last.length === MANIFEST_SLICE || octets + size > SLICE_OCTETS) {
      slices.push([row])
      octets = size
    } else {
      last.push(row)
      octets += size
    }
  }
  return slices
}

/** A row that the file itself faults, or one of which nothing is known yet. */
function faultVerdict(entry: Entry<unknown>): RowVerdict {
  const { row } = entry
  if ('device' in entry) return { row, id: '', verdict: 'known', code: null, reason: null }
  return { row, id: entry.id, verdict: 'refused', code: 'invalid_request', reason: entry.fault }
}

/** Rows of a reply count from 1 in their slice. */
function note<Row>(
  verdicts: Map<number, RowVerdict>,
  { slice, judged }: { slice: readonly Sent<Row>[]; judged: readonly RowVerdict[] },
): void {
  for (const verdict of judged) {
    const row = slice[verdict.row - 1]?.row
    if (row !== undefined) verdicts.set(row, { ...verdict, row })
  }
}

function refusedIn(verdicts: ReadonlyMap<number, RowVerdict>): number {
  return [...verdicts.values()].filter(({ verdict }) => verdict === 'refused').length
}

function answer<Row>(
  context: Context,
  done: { of: Import<Row>; written: number; verdicts: readonly RowVerdict[] },
): ExitCode {
  const { of, written, verdicts } = done
  const { into, dryRun } = of
  const count = (verdict: string) => verdicts.filter((row) => row.verdict === verdict).length
  const refused = count('refused')
  const counts = { added: count('added'), known: count('known'), refused, written }
  const sentence = dryRun
    ? `${counts.added} would be added, ${counts.known} are known, ${refused} refused; nothing was written.`
    : `${written} are written, ${counts.known} were known, ${refused} refused.`
  context.say(sentence)
  if (refused > 0 && !dryRun)
    context.say('Mend the refused rows and import the whole file again: rows that are in are known.')
  context.answer({ ...into, dryRun, ...counts, rows: verdicts }, () =>
    table(
      ['ROW', 'DEVICE', 'VERDICT', 'REASON'],
      verdicts.map(({ row, id, verdict, reason }) => [row, id, verdict, reason ?? '-']),
    ),
  )
  if (refused === 0) return EXIT.ok
  if (dryRun) return EXIT.checkFailed
  return written === 0 ? EXIT.conflict : EXIT.partly
}

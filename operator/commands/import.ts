import type { Command } from 'commander'
import { type ImportRow, MANIFEST_SLICE, type RowVerdict } from '#shared/api'
import type { Context } from '../context.ts'
import { EXIT, type ExitCode } from '../exit-codes.ts'
import { readTextFile } from '../json-file.ts'
import { type ManifestEntry, readManifest } from '../manifest.ts'
import { table } from '../table.ts'
import type { Invocation, Use } from '../verb.ts'

/** A request takes 64 KiB; the rest is for what is around the rows. */
const SLICE_OCTETS = 56 * 1024

interface ImportOptions {
  readonly batch: string
  readonly dryRun?: boolean
}

interface Sent {
  readonly row: number
  readonly device: ImportRow
}

export function addImportCommand(device: Command, use: Use): void {
  device
    .command('import')
    .description(
      'expect the devices of a manifest: they enroll without approval, each with its key alone if it has one',
    )
    .argument(
      '<file>',
      'CSV with a heading (id, spki, attributes), or a JSON array of {id, spki, attributes}',
    )
    .requiredOption('--batch <id>', 'batch that they belong to')
    .option('--dry-run', 'judge every row, write nothing')
    .action(use(importDevices))
}

/** Judges the whole file first, and writes only when no row is refused. */
async function importDevices(context: Context, { args, options }: Invocation<ImportOptions>) {
  const [file = ''] = args
  const entries = readManifest(readTextFile(file))
  const verdicts = new Map(entries.map((entry) => [entry.row, faultVerdict(entry)]))
  const rows = entries.flatMap((entry) => ('device' in entry ? [entry] : []))
  for (const { reply, slice } of await send(context, { rows, batch: options.batch, dryRun: true })) {
    note(verdicts, { slice, judged: reply.rows })
  }
  let written = 0
  if (!options.dryRun && refusedIn(verdicts) === 0) {
    for (const { reply, slice } of await send(context, { rows, batch: options.batch, dryRun: false })) {
      note(verdicts, { slice, judged: reply.rows })
      if (reply.applied) written += reply.rows.filter(({ verdict }) => verdict === 'added').length
    }
  }
  return answer(context, { options, written, verdicts: [...verdicts.values()] })
}

/** One request a slice; the first that is refused when it was to be written is the last. */
async function send(
  context: Context,
  { rows, batch, dryRun }: { rows: readonly Sent[]; batch: string; dryRun: boolean },
) {
  const replies = []
  for (const slice of slicesOf(rows)) {
    const reply = await context
      .plane()
      .importDevices({ batch, dryRun, rows: slice.map(({ device }) => device) })
    replies.push({ reply, slice })
    if (!dryRun && !reply.applied) break
  }
  return replies
}

function slicesOf(rows: readonly Sent[]): Sent[][] {
  const slices: Sent[][] = []
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
function faultVerdict(entry: ManifestEntry): RowVerdict {
  const { row } = entry
  if ('device' in entry) return { row, id: entry.device.id, verdict: 'known', code: null, reason: null }
  return { row, id: entry.id, verdict: 'refused', code: 'invalid_request', reason: entry.fault }
}

/** Rows of a reply count from 1 in their slice. */
function note(
  verdicts: Map<number, RowVerdict>,
  { slice, judged }: { slice: readonly Sent[]; judged: readonly RowVerdict[] },
): void {
  for (const verdict of judged) {
    const row = slice[verdict.row - 1]?.row
    if (row !== undefined) verdicts.set(row, { ...verdict, row })
  }
}

function refusedIn(verdicts: ReadonlyMap<number, RowVerdict>): number {
  return [...verdicts.values()].filter(({ verdict }) => verdict === 'refused').length
}

function answer(
  context: Context,
  of: { options: ImportOptions; written: number; verdicts: readonly RowVerdict[] },
): ExitCode {
  const { options, written, verdicts } = of
  const { batch, dryRun = false } = options
  const count = (verdict: string) => verdicts.filter((row) => row.verdict === verdict).length
  const refused = count('refused')
  const counts = { added: count('added'), known: count('known'), refused, written }
  const sentence = dryRun
    ? `${counts.added} would be added, ${counts.known} are known, ${refused} refused; nothing was written.`
    : `${written} are written, ${counts.known} were known, ${refused} refused.`
  context.say(sentence)
  if (refused > 0 && !dryRun)
    context.say('Mend the refused rows and import the whole file again: rows that are in are known.')
  context.answer({ batch, dryRun, ...counts, rows: verdicts }, () =>
    table(
      ['ROW', 'DEVICE', 'VERDICT', 'REASON'],
      verdicts.map(({ row, id, verdict, reason }) => [row, id, verdict, reason ?? '-']),
    ),
  )
  if (refused === 0) return EXIT.ok
  if (dryRun) return EXIT.checkFailed
  return written === 0 ? EXIT.conflict : EXIT.partly
}

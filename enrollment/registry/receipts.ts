import type { Receipt } from '#shared/api'
import type { Report, Spread } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'
import type { PlanRows } from './plan-rows.ts'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'
import type { Streams } from './streams.ts'

interface LineRow {
  readonly broker: string
  readonly position: number | null
  readonly sessions_closed: number
  readonly p50: number
  readonly p95: number
  readonly max: number
  readonly survivors: string
  readonly purging: 0 | 1
}

type Applied = Extract<Report, { type: 'applied' }>
type Line = Receipt['brokers'][number]

/** One line for each broker that was known when the hold was applied. */
export function openReceiptBook({ db, streams }: { db: Sqlite; streams: Streams }) {
  const open = db.prepare<[string]>(
    `INSERT INTO receipts (plan, broker)
     SELECT ?, id FROM brokers WHERE accepted_at IS NOT NULL AND forgotten_at IS NULL ORDER BY row`,
  )
  const fill = db.prepare<[number, number, number, number, number, string, 0 | 1, string, string]>(
    `UPDATE receipts SET position = ?, sessions_closed = ?, p50 = ?, p95 = ?, max = ?, survivors = ?, purging = ?
     WHERE plan = ? AND broker = ? AND position IS NULL`,
  )
  const isPurging = db.prepare<[string], unknown>('SELECT 1 FROM receipts WHERE broker = ? AND purging = 1')
  const purged = db.prepare<[string, number]>(
    'UPDATE receipts SET purging = 0 WHERE broker = ? AND purging = 1 AND position <= ?',
  )
  const head = db.prepare<[], number>('SELECT COALESCE(MAX(position), 0) FROM changes').pluck()
  const forget = db.prepare<[string]>('DELETE FROM receipts WHERE broker = ? AND position IS NULL')
  const forgetPurging = db.prepare<[string]>(
    'UPDATE receipts SET purging = 0 WHERE broker = ? AND purging = 1',
  )
  const lines = db.prepare<[string], LineRow>('SELECT * FROM receipts WHERE plan = ? ORDER BY row')

  return {
    open: (plan: string) => open.run(plan),
    /**
     * The first report of a broker stays: a later one has found nothing left to close.
     * @param purgedTo up to where it has purged; null when it does not tell
     */
    fill(broker: string, applied: Applied, purgedTo: number | null): void {
      const { hold, sessionsClosed, closeMs, survivors } = applied
      const { p50, p95, max } = closeMs
      const purging = purgedTo !== null && purgedTo < applied.position ? 1 : 0
      // A report from before a restore may name a position that this epoch never reaches.
      const position = purging === 1 ? Math.min(applied.position, head.get() as number) : applied.position // MAX gives a row
      const line = [position, sessionsClosed, p50, p95, max, JSON.stringify(survivors), purging] as const
      fill.run(...line, hold, broker)
    },
    /** All that was ordered up to this position is gone at the broker. */
    purged(broker: string, position: number): void {
      if (isPurging.get(broker) !== undefined) purged.run(broker, position)
    },
    /** Stops waiting for a broker; what it has applied stays. It lets nobody in any more to whom it could hand out what it still has. */
    forget(broker: string): void {
      forget.run(broker)
      forgetPurging.run(broker)
    },
    of: (plan: string): Receipt =>
      receipt(
        plan,
        lines.all(plan).map((row) => line(row, streams)),
      ),
  }
}
export type ReceiptBook = ReturnType<typeof openReceiptBook>

export function openReceipts(parts: {
  store: Store
  plans: PlanRows
  receipts: ReceiptBook
}): Pick<Registry, 'receipt'> {
  const { store, plans, receipts } = parts
  return { receipt: (id) => store.read(() => receipts.of(plans.require(id).id)) }
}

function line(row: LineRow, streams: Streams): Line {
  const { broker, position, p50, p95, max } = row
  const waiting = streams.isOpen(broker) ? 'pending' : 'down'
  return {
    broker,
    state: position === null ? waiting : 'applied',
    position,
    sessionsClosed: row.sessions_closed,
    closeMs: { p50, p95, max },
    survivors: JSON.parse(row.survivors) as string[], // written by fill only
    purging: row.purging === 1,
  }
}

function receipt(id: string, brokers: Line[]): Receipt {
  return {
    id,
    sessionsClosed: brokers.reduce((sum, { sessionsClosed }) => sum + sessionsClosed, 0),
    closeMs: worst(brokers.map(({ closeMs }) => closeMs)),
    brokers,
    survivors: brokers.flatMap(({ survivors }) => survivors),
  }
}

/** Of each order statistic that of the worst broker: the spread over all sessions is not known, and is no worse. */
function worst(spreads: readonly Spread[]): Spread {
  const highest = (of: keyof Spread) => Math.max(0, ...spreads.map((spread) => spread[of]))
  return { p50: highest('p50'), p95: highest('p95'), max: highest('max') }
}

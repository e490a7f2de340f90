import { isDue, type Marks, type PurgeOrder } from '../replica/purge-rows.ts'

/** Orders that came together. */
export interface Batch {
  /** Rises from 1. */
  readonly number: number
  /** Those up to here are of the batch before. */
  readonly from: Marks
  readonly to: Marks
  /** What is retained later than this is not theirs. */
  readonly upTo: number
}

/** Orders that are not carried out, and whom they spare: what came after an order is not taken by it. */
export class PurgeBatches {
  #waiting: Batch[] = []
  #newest = 0
  /**
   * Clients that were connected when this batch came, or have connected since, without what was left of them: what they
   * have now is theirs, as far as that batch and those before it go.
   */
  readonly #excused = new Map<string, number>()

  get count(): number {
    return this.#waiting.length
  }

  get oldest(): Batch | undefined {
    return this.#waiting[0]
  }

  get newest(): Batch | undefined {
    return this.#waiting.at(-1)
  }

  /** @param spared clients that keep what they have */
  add(batch: Omit<Batch, 'number'>, spared: readonly string[]): void {
    this.#newest += 1
    for (const clientId of spared) this.#excused.set(clientId, this.#newest)
    this.#waiting.push({ ...batch, number: this.#newest })
  }

  /** Excuses a client from all that wait; returns how to take that back. */
  excuse(clientId: string): () => void {
    const [before, newest] = [this.#excused.get(clientId) ?? 0, this.#newest]
    if (this.#waiting.length > 0) this.#excused.set(clientId, newest)
    return () => {
      if (this.#excused.get(clientId) === newest) this.#excused.set(clientId, before)
    }
  }

  isExcused(clientId: string, batch: number): boolean {
    return batch <= (this.#excused.get(clientId) ?? 0)
  }

  /** The newest batch with one of these orders. */
  newestOf(orders: readonly PurgeOrder[]): Batch | undefined {
    return this.#waiting.findLast(({ from }) => orders.some((order) => isDue(order, from)))
  }

  /** All up to this batch is carried out. */
  finish({ number }: Batch): void {
    this.#waiting = this.#waiting.filter((batch) => batch.number > number)
    if (this.#waiting.length === 0) this.#excused.clear()
  }
}

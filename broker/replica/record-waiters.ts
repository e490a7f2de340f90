import type { AdmissionRecord } from './replica.ts'

export interface WaiterDeps {
  lookup(fingerprint: string): AdmissionRecord | null
  /** Longest wait for a record to arrive, ms. */
  readonly deadlineMs: number
  /** Most connections that may wait at once; others are answered at once with what is known. */
  readonly capacity: number
}

interface Waiter {
  readonly fingerprint: string
  resolve(record: AdmissionRecord | null): void
}

/**
 * Connections at the gate whose certificate verifies but is not recorded yet: a device may connect milliseconds after
 * it enrolled, before the change has come here. They wait for the record, not for the stream: if it is cut, it may be
 * back in time.
 */
export class RecordWaiters {
  readonly #deps: WaiterDeps
  readonly #waiting = new Set<Waiter>()

  constructor(deps: WaiterDeps) {
    this.#deps = deps
  }

  /** Resolves at once with a known record, when it arrives, or with null at the deadline. Never rejects. */
  wait(fingerprint: string): Promise<AdmissionRecord | null> {
    const known = this.#deps.lookup(fingerprint)
    if (known !== null || this.#waiting.size >= this.#deps.capacity) return Promise.resolve(known)
    return new Promise((resolve) => {
      const timer = setTimeout(() => waiter.resolve(null), this.#deps.deadlineMs)
      const waiter: Waiter = {
        fingerprint,
        resolve: (record) => {
          clearTimeout(timer)
          this.#waiting.delete(waiter)
          resolve(record)
        },
      }
      this.#waiting.add(waiter)
    })
  }

  /** Looks again for each waiting connection; called when the replica has changed. */
  settle(): void {
    for (const waiter of this.#waiting) {
      const record = this.#deps.lookup(waiter.fingerprint)
      if (record !== null) waiter.resolve(record)
    }
  }

  close(): void {
    for (const waiter of this.#waiting) waiter.resolve(null)
  }
}

import type { ReceiptLine } from './api.ts'

/** The broker stops whom the plan stops, and has forgotten what it takes. */
export function isCarriedOut({ state, purging }: ReceiptLine): boolean {
  return state === 'applied' && !purging
}

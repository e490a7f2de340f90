import type { RefusalErrorCode } from '#shared/errors'

/**
 * Why a connection has ended, where no decision against its client ended it: the client said goodbye, was silent for too
 * long, broke a rule (`packet` and other refusals), did not read, came back elsewhere or with its next certificate;
 * or the disk took no writes, something failed here, the broker was stopped.
 */
export type Ending =
  | RefusalErrorCode
  | 'client'
  | 'keepalive'
  | 'slow'
  | 'rotated'
  | 'store'
  | 'internal'
  | 'broker-stopped'

/** What a connection knows of its end. */
export interface Endable {
  /** A decision against its client. */
  readonly refused: RefusalErrorCode | null
  ending?: Ending
}

/** Notes why the connection is about to end. What came first is the cause, and what follows from it is not. */
export function endedBy(connection: Endable, ending: Ending): void {
  connection.ending ??= ending
}

/** As it is told; `lost` when nobody here ended it, and the client did not say that it goes. */
export function reasonOf({ refused, ending }: Endable): string {
  return refused ?? ending ?? 'lost'
}

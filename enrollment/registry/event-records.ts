import type { EventView } from '#shared/api'

/** Where the events begin and end: what is asked for before `oldest` is not kept. */
export interface EventBounds {
  /** Of the registry; a restore begins another one, in which sequences begin anew. */
  readonly epoch: string
  /** 1 before the first event. */
  readonly oldest: number
  /** 0 before the first event. */
  readonly newest: number
}

/** The stream of events: kept for 30 days, at most half a million of them; sequences have no gaps. */
export interface EventIntents {
  eventBounds(): Promise<EventBounds>
  /** Oldest first, at most `limit`; of one device with what its batch, fleet, issuers and plans went through. */
  eventsAfter(after: number, of: { limit: number; device?: string }): Promise<EventView[]>
  /** The newest of a device before a sequence, oldest first. @throws MusterError not_found */
  timelineOf(device: string, of: { before?: number; limit: number }): Promise<EventView[]>
}

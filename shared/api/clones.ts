import { type Static, Type } from 'typebox'
import { Id, orNull, Time } from './fields.ts'

/** Two addresses take the identity of a device from each other: its key may be in two places. */
export const CloneAlarm = Type.Object({
  device: Id,
  fleet: Id,
  /** So many times, at most one a minute. */
  alarms: Type.Integer({ minimum: 1 }),
  firstAt: Time,
  lastAt: Time,
  address: Type.String(),
  otherAddress: Type.String(),
  broker: Id,
  /** The hold that the plane made of it, when its fleet has quarantine on. */
  plan: orNull(Type.String()),
})
export type CloneAlarm = Static<typeof CloneAlarm>

/** Whether the plane holds devices of the fleet that a clone alarm names. */
export const QuarantineRequest = Type.Object({ clones: Type.Boolean() }, { additionalProperties: false })
export type QuarantineRequest = Static<typeof QuarantineRequest>

export const QuarantineView = Type.Object({ fleet: Id, clones: Type.Boolean() })
export type QuarantineView = Static<typeof QuarantineView>

import { type Static, Type } from 'typebox'
import { Id, orNull, Time } from './fields.ts'

const Text = Type.String()

/** What happened: to a device, or to all that a scope covers. */
export const EventKind = Type.Union([
  Type.Literal('enrolled'),
  Type.Literal('rotated'),
  Type.Literal('connected'),
  Type.Literal('disconnected'),
  Type.Literal('refused'),
  Type.Literal('held'),
  Type.Literal('released'),
  Type.Literal('revoked'),
  Type.Literal('superseded'),
  Type.Literal('retired'),
  /** A broker began again: the connections that it had before are over. */
  Type.Literal('broker-started'),
])
export type EventKind = Static<typeof EventKind>

/** One event of the registry's stream. Sequences have no gaps; that of a device counts its own events. */
export const EventView = Type.Object({
  sequence: Type.Integer({ minimum: 1 }),
  at: Time,
  kind: EventKind,
  /** `device:<id>`, or `batch:`, `fleet:`, `issuer:`, `plan:` for a hold on many, or `broker:`. */
  scope: Text,
  device: orNull(Id),
  deviceSequence: orNull(Type.Integer({ minimum: 1 })),
  serial: Type.Optional(Text),
  fingerprint: Type.Optional(Text),
  /** Who saw it, and in which of its batches of reports; `connection` is unique within the boot. */
  broker: Type.Optional(Text),
  boot: Type.Optional(Text),
  batch: Type.Optional(Type.Integer()),
  connection: Type.Optional(Text),
  address: Type.Optional(Text),
  resumed: Type.Optional(Type.Boolean()),
  /** Why a connection ended, a certificate was revoked, a device held; the code of a refusal. */
  reason: Type.Optional(Text),
  plan: Type.Optional(Text),
})
export type EventView = Static<typeof EventView>

/** A line of `GET /v1/events`. */
export const EventMessage = Type.Union([
  Type.Object({ type: Type.Literal('event'), ...EventView.properties }),
  /** What was asked for is not kept any more, or is of before a restore: events go on with `oldest`. */
  Type.Object({ type: Type.Literal('gap'), epoch: Text, after: Type.Integer(), oldest: Type.Integer() }),
  /** Everything up to `sequence` has been sent. */
  Type.Object({ type: Type.Literal('alive'), epoch: Text, sequence: Type.Integer(), at: Time }),
])
export type EventMessage = Static<typeof EventMessage>

export const Timeline = Type.Object({ device: Id, events: Type.Array(EventView) })
export type Timeline = Static<typeof Timeline>

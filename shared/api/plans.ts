import { type Static, Type } from 'typebox'
import { Scope, Spread } from '../feed.ts'
import { Id, MAX_UNDO_MS, orNull, Time } from './fields.ts'

/** RFC 5280 section 5.3.1 reasons that an operator may give. */
export const Reason = Type.Union([
  Type.Literal('unspecified'),
  Type.Literal('keyCompromise'),
  Type.Literal('affiliationChanged'),
  Type.Literal('superseded'),
  Type.Literal('cessationOfOperation'),
  Type.Literal('privilegeWithdrawn'),
])
export type Reason = Static<typeof Reason>

export const PlanRequest = Type.Object(
  {
    action: Type.Union([Type.Literal('hold'), Type.Literal('revoke')]),
    /** One scope, or a list of devices that becomes the members of the plan. */
    scope: Type.Optional(
      Type.Object({
        kind: Type.Union([
          Type.Literal('device'),
          Type.Literal('batch'),
          Type.Literal('fleet'),
          Type.Literal('issuer'),
        ]),
        id: Type.String({ minLength: 1, maxLength: 128 }),
      }),
    ),
    devices: Type.Optional(Type.Array(Id, { minItems: 1, maxItems: 100_000 })),
    reason: Type.Optional(Reason),
    /** Time in which a revocation can be undone, ms, at most 30 days; 0 for none; default 15 minutes; always 0 for keyCompromise. */
    undoMs: Type.Optional(Type.Integer({ minimum: 0, maximum: MAX_UNDO_MS })),
    /** Brokers also forget the retained messages that the devices have published; undoing the plan does not bring them back. */
    purgeRetained: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false },
)
export type PlanRequest = Static<typeof PlanRequest>

export const PlanState = Type.Union([
  Type.Literal('proposed'),
  Type.Literal('applied'),
  Type.Literal('finalising'),
  Type.Literal('final'),
  Type.Literal('undone'),
  Type.Literal('expired'),
])
export type PlanState = Static<typeof PlanState>

/** One broker's line of a receipt. `down`: pending, and its stream is not open. */
export const ReceiptLine = Type.Object({
  broker: Type.String(),
  state: Type.Union([Type.Literal('applied'), Type.Literal('pending'), Type.Literal('down')]),
  position: orNull(Type.Integer()),
  sessionsClosed: Type.Integer(),
  closeMs: Spread,
  survivors: Type.Array(Type.String()),
  /** Applied, but what the plan takes of stored things is not all gone there yet. */
  purging: Type.Boolean(),
})
export type ReceiptLine = Static<typeof ReceiptLine>

export const Receipt = Type.Object({
  id: Type.String(),
  sessionsClosed: Type.Integer(),
  closeMs: Spread,
  brokers: Type.Array(ReceiptLine),
  survivors: Type.Array(Type.String()),
})
export type Receipt = Static<typeof Receipt>

export const PlanView = Type.Object({
  id: Type.String(),
  action: Type.Union([Type.Literal('hold'), Type.Literal('revoke')]),
  scope: Scope,
  reason: Reason,
  undoMs: Type.Integer(),
  purgeRetained: Type.Boolean(),
  state: PlanState,
  /** Counted when it was proposed. */
  counts: Type.Object({
    devices: Type.Integer(),
    online: Type.Integer(),
    tokens: Type.Integer(),
    byBatch: Type.Record(Type.String(), Type.Integer()),
  }),
  by: Type.String(),
  createdAt: Time,
  appliedAt: orNull(Time),
  /** When undo ends and the hold becomes revocations; null for a hold. */
  finaliseAt: orNull(Time),
  receipt: orNull(Receipt),
})
export type PlanView = Static<typeof PlanView>

/** `devices`: the count that the operator has confirmed; another one than the plan's is refused (`count_mismatch`). */
export const PlanApply = Type.Object(
  { devices: Type.Integer({ minimum: 0 }) },
  { additionalProperties: false },
)
export type PlanApply = Static<typeof PlanApply>

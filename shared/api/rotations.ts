import { type Static, Type } from 'typebox'
import { Id, Time } from './fields.ts'

/** Of a rotation that names its devices the id is its own. */
export const RotationScope = Type.Object({
  kind: Type.Union([
    Type.Literal('device'),
    Type.Literal('batch'),
    Type.Literal('fleet'),
    Type.Literal('devices'),
  ]),
  id: Type.String({ minLength: 1, maxLength: 128 }),
})

export const RotationRequest = Type.Object(
  {
    scope: Type.Optional(
      Type.Object({
        kind: Type.Union([Type.Literal('device'), Type.Literal('batch'), Type.Literal('fleet')]),
        id: Id,
      }),
    ),
    devices: Type.Optional(Type.Array(Id, { minItems: 1, maxItems: 1000 })),
    /** Time over which the devices are spread, ms; 0 for all at once. */
    overMs: Type.Integer({ minimum: 0, maximum: 31_536_000_000 }),
  },
  { additionalProperties: false },
)
export type RotationRequest = Static<typeof RotationRequest>

export const RotationView = Type.Object({
  id: Type.String(),
  scope: RotationScope,
  overMs: Type.Integer(),
  /** `pacing` while windows are being moved, `paced` when all have been. */
  state: Type.Union([Type.Literal('pacing'), Type.Literal('paced')]),
  by: Type.String(),
  createdAt: Time,
})
export type RotationView = Static<typeof RotationView>

export const RotationProgress = Type.Object({
  ...RotationView.properties,
  /** Certificates whose window was moved; the four below add up to it. */
  moved: Type.Integer(),
  /** A broker has seen the successor. */
  rotated: Type.Integer(),
  /** Their window is not over. */
  waiting: Type.Integer(),
  /** Their window is over, and no broker has seen a successor. */
  late: Type.Integer(),
  /** Revoked, expired or retired meanwhile. */
  gone: Type.Integer(),
  /** Those that are late by name, at most 100. */
  stragglers: Type.Array(Id),
})
export type RotationProgress = Static<typeof RotationProgress>

import { type Static, Type } from 'typebox'
import { Id, orNull, Time } from './fields.ts'

/** So many rows of a manifest go into one request at most; all of them are imported, or none. */
export const MANIFEST_SLICE = 500

/** What its columns may be called beside `id` and `spki`: 16 a device, 256 characters each, no control characters. */
export const ATTRIBUTE_NAME = /^[A-Za-z][A-Za-z0-9_.-]{0,31}$/
export const ATTRIBUTES_MAX = 16
export const ATTRIBUTE_LENGTH_MAX = 256

/** The form of a row is judged row by row, so this schema bounds it only. */
const ImportRow = Type.Object(
  {
    id: Type.String({ maxLength: 256 }),
    spki: Type.Optional(Type.String({ maxLength: 256 })),
    attributes: Type.Optional(Type.Record(Type.String(), Type.String(), { maxProperties: 64 })),
  },
  { additionalProperties: false },
)
export type ImportRow = Static<typeof ImportRow>

export const ImportRequest = Type.Object(
  {
    batch: Id,
    rows: Type.Array(ImportRow, { minItems: 1, maxItems: MANIFEST_SLICE }),
    /** True judges the rows and writes nothing. */
    dryRun: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false },
)
export type ImportRequest = Static<typeof ImportRequest>

export const RowVerdict = Type.Object({
  /** Place among the rows of the request, from 1. */
  row: Type.Integer(),
  id: Type.String(),
  /** `known`: imported before, word for word. */
  verdict: Type.Union([Type.Literal('added'), Type.Literal('known'), Type.Literal('refused')]),
  /** Error code and sentence of a row that is refused. */
  code: orNull(Type.String()),
  reason: orNull(Type.String()),
})
export type RowVerdict = Static<typeof RowVerdict>

export const ImportReply = Type.Object({
  batch: Id,
  /** False when a row is refused, and in a dry run: then nothing was written. */
  applied: Type.Boolean(),
  rows: Type.Array(RowVerdict),
})
export type ImportReply = Static<typeof ImportReply>

const Count = Type.Integer({ minimum: 0 })

const Credentials = Type.Object({ total: Count, open: Count, spent: Count, expired: Count, cancelled: Count })

/** How often somebody tried what was over, or what was never listed: it may be in the wrong hands. */
export const BootstrapAlarm = Type.Object({
  batch: Id,
  kind: Type.Union([Type.Literal('token'), Type.Literal('claim'), Type.Literal('manufacturer')]),
  token: Type.String(),
  code: Type.String(),
  attempts: Count,
  lastAt: Time,
})
export type BootstrapAlarm = Static<typeof BootstrapAlarm>

/** How a batch stands. In each sum the parts add up to `total`. */
export const BatchReport = Type.Object({
  batch: Id,
  fleet: Id,
  tokens: Credentials,
  claims: Credentials,
  /** One is spent when every device of its list has enrolled. */
  manufacturers: Credentials,
  /** Of all of them; `reserved` for a device that an operator has to approve, or has approved; what expired or was cancelled was never used. */
  uses: Type.Object({
    total: Count,
    enrolled: Count,
    reserved: Count,
    open: Count,
    expired: Count,
    cancelled: Count,
  }),
  devices: Type.Object({ total: Count, expected: Count, pending: Count, enrolled: Count, retired: Count }),
  /** Attempts on tokens, claims and manufacturers that were over, and of devices that a list does not have; of one address, at most some hundreds a minute are counted. */
  alarms: Type.Array(BootstrapAlarm),
})
export type BatchReport = Static<typeof BatchReport>

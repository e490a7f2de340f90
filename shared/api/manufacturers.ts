import { type Static, Type } from 'typebox'
import { MANIFEST_SLICE, RowVerdict } from './bootstrap.ts'
import { Csr, Id, orNull, Time } from './fields.ts'
import { Naming, TokenView } from './fleets.ts'

/** A claim certificate: the same as a token, and the request whose key it is for. */
export const ClaimRequest = Type.Object(
  {
    batch: Id,
    uses: Type.Integer({ minimum: 1, maximum: 10_000_000 }),
    /** In a year when it is left out. */
    expiresAt: Type.Optional(Time),
    devices: Type.Optional(Type.Array(Id, { minItems: 1, maxItems: 100_000 })),
    naming: Type.Optional(Naming),
    approval: Type.Optional(Type.Boolean()),
    csr: Csr,
  },
  { additionalProperties: false },
)
export type ClaimRequest = Static<typeof ClaimRequest>

export const ClaimReply = Type.Object({
  ...TokenView.properties,
  certificate: Type.String(),
  /** Issuing CA and root, in this order. */
  chain: Type.Array(Type.String()),
})
export type ClaimReply = Static<typeof ClaimReply>

/** `ca`: the certificate of the CA that issued the certificates in the devices, PEM. */
export const ManufacturerRequest = Type.Object(
  {
    id: Id,
    batch: Id,
    ca: Type.String({ minLength: 1, maxLength: 16_384 }),
    expiresAt: Type.Optional(Time),
  },
  { additionalProperties: false },
)
export type ManufacturerRequest = Static<typeof ManufacturerRequest>

export const ManufacturerView = Type.Object({
  id: Id,
  batch: Id,
  /** SHA-256 of its CA certificate, hex. */
  ca: Type.String(),
  /** The CA's subject, for people. */
  subject: Type.String(),
  /** Of the CA certificate. */
  notAfter: Time,
  /** Devices on its list. */
  listed: Type.Integer(),
  enrolled: Type.Integer(),
  state: TokenView.properties.state,
  expiresAt: orNull(Time),
  createdAt: Time,
})
export type ManufacturerView = Static<typeof ManufacturerView>

/** The form of a row is judged row by row, so this schema bounds it only. */
const ManufacturedRow = Type.Object(
  {
    /** The serialNumber itself when it is left out. */
    id: Type.Optional(Type.String({ maxLength: 256 })),
    /** The attribute serialNumber of the subject, exactly as the certificate has it. */
    serialNumber: Type.Optional(Type.String({ maxLength: 256 })),
    /** Serial of the certificate, hex. */
    certificateSerial: Type.Optional(Type.String({ maxLength: 256 })),
  },
  { additionalProperties: false },
)
export type ManufacturedEntry = Static<typeof ManufacturedRow>

export const ManufacturedRequest = Type.Object(
  {
    rows: Type.Array(ManufacturedRow, { minItems: 1, maxItems: MANIFEST_SLICE }),
    /** True judges the rows and writes nothing. */
    dryRun: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false },
)
export type ManufacturedRequest = Static<typeof ManufacturedRequest>

export const ManufacturedReply = Type.Object({
  manufacturer: Id,
  /** False when a row is refused, and in a dry run: then nothing was written. */
  applied: Type.Boolean(),
  rows: Type.Array(RowVerdict),
})
export type ManufacturedReply = Static<typeof ManufacturedReply>

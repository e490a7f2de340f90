import { Type } from 'typebox'
import { ID_PATTERN } from '../identity/device.ts'

/** A device, fleet, batch, broker or operator. */
export const Id = Type.String({ pattern: ID_PATTERN })

/** Milliseconds since 1970 UTC. */
export const Time = Type.Integer({ minimum: 0 })

/** The last moment that a certificate can name, ms since 1970: 9999-12-31T23:59:59Z (RFC 5280 section 4.1.2.5). */
const LAST_MOMENT = 253_402_300_799_000

/** A time that a request sets; that it has not passed is for the use case to say. */
export const Expiry = Type.Integer({ minimum: 0, maximum: LAST_MOMENT })

const DAY_MS = 86_400_000
/** Longest life of a certificate, ms: 100 years. */
export const MAX_LIFETIME_MS = 36_525 * DAY_MS
/** Longest that a device can be given to do something in, ms: a year. */
export const MAX_GRACE_MS = 365 * DAY_MS + DAY_MS / 4
/** A revocation that can be undone for longer is a hold, ms: 30 days. */
export const MAX_UNDO_MS = 30 * DAY_MS

/** PKCS#10 as PEM or as base64 of DER. */
export const Csr = Type.String({ minLength: 1, maxLength: 32_768 })

export const orNull = <T extends Type.TSchema>(schema: T) => Type.Union([schema, Type.Null()])

import { Type } from 'typebox'
import { ID_PATTERN } from '../identity/device.ts'

/** A device, fleet, batch, broker or operator. */
export const Id = Type.String({ pattern: ID_PATTERN })

/** Milliseconds since 1970 UTC. */
export const Time = Type.Integer({ minimum: 0 })

/** PKCS#10 as PEM or as base64 of DER. */
export const Csr = Type.String({ minLength: 1, maxLength: 32_768 })

export const orNull = <T extends Type.TSchema>(schema: T) => Type.Union([schema, Type.Null()])

/** What a client of a service or a fleet must bring beside its certificate: a password, or a token, in CONNECT. */
import { type Static, Type } from 'typebox'

const Id = Type.String({ minLength: 1, maxLength: 64 })
const Octets = Type.String({ pattern: '^[A-Za-z0-9_-]{16,128}$' })

/** Verifier of a password of 256 random bits, made by the registry: what is here helps nobody to guess it. */
export const PasswordFactor = Type.Object({
  /** New whenever the factor is set. */
  id: Id,
  kind: Type.Literal('password'),
  /** Base64url. */
  salt: Octets,
  /** scrypt (RFC 7914) with `cost`, r = 8, p = 1: 32 octets, base64url. */
  hash: Octets,
  cost: Type.Integer({ minimum: 1_024, maximum: 1_048_576 }),
})
export type PasswordFactor = Static<typeof PasswordFactor>

/** What a token may be signed with: nothing that is symmetric, so that a public key is never taken for a secret. */
const Algorithm = Type.Union([
  Type.Literal('ES256'),
  Type.Literal('ES384'),
  Type.Literal('EdDSA'),
  Type.Literal('PS256'),
  Type.Literal('RS256'),
])

const Url = Type.String({ pattern: '^https://[^\\s#]+$', maxLength: 512 })

/** How tokens (JWT, RFC 7519) are judged; `sub` is the device id, `exp` and `kid` are needed. */
export const TokenRules = Type.Object(
  {
    issuer: Type.String({ minLength: 1, maxLength: 256 }),
    audience: Type.String({ minLength: 1, maxLength: 256 }),
    algorithms: Type.Array(Algorithm, { minItems: 1, maxItems: 5 }),
    /** Either the keys themselves (JWKS, RFC 7517, as JSON), or where brokers fetch them. */
    jwks: Type.Optional(Type.String({ minLength: 2, maxLength: 65_536 })),
    url: Type.Optional(Url),
  },
  { additionalProperties: false },
)
export type TokenRules = Static<typeof TokenRules>

export const TokenFactor = Type.Object({ ...TokenRules.properties, id: Id, kind: Type.Literal('jwt') })
export type TokenFactor = Static<typeof TokenFactor>

export const SecondFactor = Type.Union([PasswordFactor, TokenFactor])
export type SecondFactor = Static<typeof SecondFactor>

/** scrypt's other parameters, and what it may use: 128 * cost * r octets, and some. */
export const SCRYPT = { r: 8, p: 1, octets: 32 } as const
export const scryptMemory = (cost: number): number => 128 * cost * SCRYPT.r + 1_048_576

interface Bound {
  readonly device: { readonly factor?: SecondFactor }
  readonly fleet: { readonly factor?: SecondFactor }
}

/** A service's own goes before that of its fleet; null where none is asked for. */
export function factorOf({ device, fleet }: Bound): SecondFactor | null {
  return device.factor ?? fleet.factor ?? null
}

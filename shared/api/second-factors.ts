import { type Static, Type } from 'typebox'
import { TokenRules } from '../second-factor.ts'

export interface FactorScope {
  readonly kind: 'service' | 'fleet'
  readonly id: string
}

/** A password that the registry makes, or how tokens are judged. */
export const FactorRequest = Type.Union([
  Type.Object({ kind: Type.Literal('password') }, { additionalProperties: false }),
  Type.Object({ kind: Type.Literal('jwt'), rules: TokenRules }, { additionalProperties: false }),
])
export type FactorRequest = Static<typeof FactorRequest>

/** What is asked for, without what would prove it. */
export const FactorView = Type.Object({
  scope: Type.Union([Type.Literal('service'), Type.Literal('fleet')]),
  id: Type.String(),
  kind: Type.Union([Type.Literal('none'), Type.Literal('password'), Type.Literal('jwt')]),
  rules: Type.Optional(TokenRules),
})
export type FactorView = Static<typeof FactorView>

/** With the password, when one was made: it is shown this once. */
export const FactorReply = Type.Object({ ...FactorView.properties, password: Type.Optional(Type.String()) })
export type FactorReply = Static<typeof FactorReply>

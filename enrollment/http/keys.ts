import { Type } from 'typebox'
import { CompromiseRequest } from '#shared/api'
import { type Route, route } from './routes.ts'

const PAGE = 100
const KeyQuery = Type.Object({
  after: Type.Optional(Type.String({ maxLength: 64 })),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000 })),
})

/** The list of compromised keys, for operators. */
export const KEY_ROUTES: readonly Route[] = [
  route({
    method: 'POST',
    path: '/v1/keys/compromised',
    role: 'operator',
    body: CompromiseRequest,
    handle: async ({ deps, body, by }) =>
      deps.registry.compromiseKeys([...new Set(body.keys)], { now: deps.now(), by }),
  }),
  route({
    method: 'GET',
    path: '/v1/keys/compromised',
    role: 'operator',
    query: KeyQuery,
    handle: async ({ deps, query }) => deps.registry.listCompromisedKeys({ limit: PAGE, ...query }),
  }),
]

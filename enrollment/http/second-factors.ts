import { FactorRequest, type FactorScope } from '#shared/api/second-factors'
import { clearFactor, setFactor, showFactor } from '../second-factors.ts'
import { type Route, route } from './routes.ts'

/** What services and fleets ask for beside a certificate, for operators. */
export const SECOND_FACTOR_ROUTES: readonly Route[] = (['service', 'fleet'] as const).flatMap((kind) => {
  const path = `/v1/${kind}s/:id/factor`
  const scope = (id: string): FactorScope => ({ kind, id })
  return [
    route({
      method: 'GET',
      path,
      role: 'operator',
      handle: async ({ deps, param }) => showFactor(deps, scope(param('id'))),
    }),
    route({
      method: 'PUT',
      path,
      role: 'operator',
      body: FactorRequest,
      handle: async ({ deps, param, body, by }) =>
        setFactor(deps, { scope: scope(param('id')), request: body, by }),
    }),
    route({
      method: 'DELETE',
      path,
      role: 'operator',
      handle: async ({ deps, param, by }) => clearFactor(deps, { scope: scope(param('id')), by }),
    }),
  ]
})

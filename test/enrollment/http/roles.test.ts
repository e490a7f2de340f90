import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { ADMIN_ROUTES } from '../../../enrollment/http/admin.ts'
import { API_ROUTES } from '../../../enrollment/http/api.ts'
import { BROKER_ROUTES } from '../../../enrollment/http/brokers.ts'
import type { Role } from '../../../enrollment/http/caller.ts'
import { FEED_ROUTES } from '../../../enrollment/http/feed.ts'
import { CA_ROUTES } from '../../../enrollment/http/rollover.ts'
import type { Route } from '../../../enrollment/http/routes.ts'
import {
  enrollBroker,
  enrollDevice,
  newRequest,
  operatorPair,
  type Pair,
  type RunningEnrollment,
  startEnrollment,
} from '../../support/enrollment.ts'
import { openTestClient } from '../../support/https.ts'
import { testManufacturer } from '../../support/manufacturer.ts'

/** Somebody who calls, and the roles that he has on each listener. */
interface Visitor {
  readonly name: string
  readonly pair?: Pair
  readonly bearer?: string
  readonly admin: readonly Role[]
  readonly enrollment: readonly Role[]
}

async function visitors(service: RunningEnrollment, other: RunningEnrollment): Promise<Visitor[]> {
  const { admin } = service
  const { key, csr } = await newRequest()
  const { certificate } = await admin.createService({ id: 'dashboard', csr })
  const api = await admin.createApiToken({ name: 'ci' })
  const cancelled = await admin.createApiToken({ name: 'old-ci' })
  await admin.cancelApiToken('old-ci')
  const forgotten = await enrollBroker(service, 'edge-0')
  await admin.forgetBroker('edge-0')
  const own = (file: string) => readFileSync(join(service.config.layout.enrollment, file), 'utf8')
  const nothing = { admin: [], enrollment: [] }
  const [claim, maker] = [await newRequest(), testManufacturer()]
  const claimed = await admin.createClaim({ batch: 'b', uses: 9, csr: claim.csr })
  await admin.addManufacturer({ id: 'acme', batch: 'b', ca: maker.ca })
  await admin.listManufactured('acme', { rows: [{ serialNumber: 'SN-1' }] })
  return [
    { name: 'nobody', ...nothing },
    { name: 'an operator', pair: operatorPair(service), admin: ['operator'], enrollment: [] },
    { name: 'an API token', bearer: api.token, admin: ['operator'], enrollment: [] },
    { name: 'a broker', pair: await enrollBroker(service, 'edge-1'), admin: ['broker'], enrollment: [] },
    {
      name: 'a device',
      pair: await enrollDevice(service, { id: 'drill-1' }),
      admin: [],
      enrollment: ['device'],
    },
    { name: 'a service', pair: { key, certificate }, admin: [], enrollment: ['device'] },
    {
      name: 'who has the claim of a batch',
      pair: { key: claim.key, certificate: claimed.certificate },
      ...nothing,
    },
    { name: 'a device as its manufacturer made it', pair: maker.issue('SN-1'), ...nothing },
    { name: 'a manufacturer', pair: maker.pair, ...nothing },
    { name: 'a forgotten broker', pair: forgotten, ...nothing },
    { name: 'a cancelled API token', bearer: cancelled.token, ...nothing },
    {
      name: 'a token for devices',
      bearer: (await admin.createToken({ batch: 'b', uses: 9 })).token,
      ...nothing,
    },
    {
      name: 'the server itself',
      pair: { certificate: own('server.crt'), key: own('server.key') },
      ...nothing,
    },
    { name: 'an operator of another plane', pair: operatorPair(other), ...nothing },
    { name: 'a device of another plane', pair: await enrollDevice(other, { id: 'drill-1' }), ...nothing },
  ]
}

t.test('every route is open to its role and to nobody else', async (t) => {
  const directory = t.testdir({ one: {}, other: {} })
  const service = await startEnrollment(t, { data: join(directory, 'one') })
  const other = await startEnrollment(t, { data: join(directory, 'other') })
  const everyone = await visitors(service, other)
  const listeners = {
    admin: [...ADMIN_ROUTES, ...CA_ROUTES, ...BROKER_ROUTES, ...FEED_ROUTES],
    enrollment: API_ROUTES,
  } as const
  for (const visitor of everyone) {
    t.test(visitor.name, async (t) => {
      for (const listener of ['admin', 'enrollment'] as const) {
        for (const route of listeners[listener]) {
          const status = await knock(service, { visitor, listener, route })
          const isOpen = route.role === 'anyone' || visitor[listener].includes(route.role)
          const isRefused = [401, 403, 429].includes(status) // guessed tokens are told to wait after a while
          t.equal(isRefused, !isOpen, `${route.method} ${route.path} is for ${route.role}: ${status}`)
          t.not(status, 500)
        }
      }
    })
  }
})

/** The status of a request without sense: an open door says 400 or 404, a closed one 401 or 403. */
async function knock(
  service: RunningEnrollment,
  { visitor, listener, route }: { visitor: Visitor; listener: 'admin' | 'enrollment'; route: Route },
): Promise<number> {
  const client = openTestClient({ url: service.whereabouts[listener], ca: service.root, ...visitor.pair })
  const headers = visitor.bearer ? { authorization: `Bearer ${visitor.bearer}` } : {}
  const path = route.path.replace(/:\w+/g, 'nobody')
  try {
    if (route.path === '/v1/events')
      return (await client.send('GET', `${path}?follow=false`, { headers })).status
    if (route.path === '/v1/feed') return (await client.stream(path)).statusCode ?? 0
    const content = ['POST', 'PUT'].includes(route.method) ? { headers, json: {} } : { headers }
    return (await client.send(route.method, path, content)).status
  } finally {
    client.close()
  }
}

t.test('the listeners carry no route beside those of the tables', async (t) => {
  const paths = [...ADMIN_ROUTES, ...BROKER_ROUTES, ...FEED_ROUTES, ...API_ROUTES]
  const open = paths.filter(({ role }) => role === 'anyone').map(({ method, path }) => `${method} ${path}`)
  t.same(
    new Set(open),
    new Set(['POST /v1/enroll', 'GET /v1/ca', 'GET /healthz', 'POST /v1/brokers/enroll']),
    'a new route without a role is noticed here',
  )
})

import type { FastifyInstance, FastifyRequest } from 'fastify'
import { isMusterError } from '#shared/errors'
import type { Lifecycle } from '#shared/service'
import type { Config } from '../config.ts'
import type { Deps } from '../deps.ts'
import type { Reply } from '../metrics.ts'
import type { OwnPair } from '../own-certificates.ts'
import { ADMIN_ROUTES } from './admin.ts'
import { API_ROUTES, rememberFailure } from './api.ts'
import { BROKER_ROUTES } from './brokers.ts'
import { identifyAdmin, identifyDevice, identifyLate } from './caller.ts'
import { downloads } from './downloads.ts'
import { serveEst } from './est.ts'
import { FEED_ROUTES } from './feed.ts'
import { createLimits } from './limits.ts'
import { serveOcsp } from './ocsp.ts'
import { STATUS } from './problem.ts'
import { CA_ROUTES } from './rollover.ts'
import { serveRoutes } from './routes.ts'
import { openListener, type TlsMaterial } from './server.ts'

interface ListenersOptions {
  readonly config: Config
  readonly lifecycle: Lifecycle
  readonly pair: OwnPair
  /** Told of every reply; not given when nobody wants to know. */
  replied?(reply: Reply): void
}

/**
 * The three listeners: devices (device CA), operators and brokers (infrastructure CA), downloads (plain HTTP).
 * @throws MusterError port_taken
 */
export async function startListeners(
  deps: Deps,
  { config, lifecycle, pair, replied }: ListenersOptions,
): Promise<{ reload(pair: OwnPair): void }> {
  const stopping = new AbortController()
  const at = { deps, limits: createLimits() }
  const trust = (issuers: 'devices' | 'infrastructures', own: OwnPair): TlsMaterial => {
    const { bundle } = deps.authority
    // a device picks its certificate by the CAs that TLS names; whose it is, and what it opens, is checked by the routes
    const makers = issuers === 'devices' ? deps.manufacturers.pems : []
    const clientCas = [...bundle.roots, ...bundle.links, ...bundle[issuers], ...makers]
    return { certificate: own.certificate, key: own.key, clientCas }
  }
  const start = async (
    name: 'enrollment' | 'admin' | 'http',
    options: { tls: TlsMaterial | null; register(app: FastifyInstance): void },
  ) => {
    const listener = await openListener({
      ...options,
      name,
      ...(replied && { replied: (reply) => replied({ listener: name, ...reply }) }),
      host: config.listen,
      port: config.ports[name],
      log: deps.log,
    })
    lifecycle.started(`${name} listener`, () => listener.stop())
    return listener
  }

  await start('http', {
    tls: null,
    register: (app) => {
      downloads(app, deps)
      serveOcsp(app, deps)
    },
  })
  const enrollment = await start('enrollment', {
    tls: trust('devices', pair),
    register: (app) => {
      serveEst(app, at)
      serveRoutes(app, {
        ...at,
        routes: API_ROUTES,
        stopping: stopping.signal,
        identify: identifyDevice,
        identifyLate,
        onFailure: (error, from) => rememberFailure(at, { error, ...from }),
      })
    },
  })
  const admin = await start('admin', {
    tls: trust('infrastructures', pair),
    register: (app) =>
      serveRoutes(app, {
        ...at,
        routes: [...ADMIN_ROUTES, ...CA_ROUTES, ...BROKER_ROUTES, ...FEED_ROUTES],
        stopping: stopping.signal,
        identify: identifyAdmin,
        onFailure: async (error, { request }) => logRefusedAdmin(deps, { error, request }),
      }),
  })
  // Stopped first: streams and long polls end, so that the listeners need not wait for them.
  lifecycle.started('streams', () => stopping.abort())
  let current = pair
  deps.manufacturers.onChange(() => enrollment.reload(trust('devices', current)))
  return {
    reload: (own) => {
      current = own
      enrollment.reload(trust('devices', own))
      admin.reload(trust('infrastructures', own))
    },
  }
}

/** Who was turned away from the admin API; refusals of devices are in the registry instead. */
function logRefusedAdmin(
  { log }: Deps,
  { error, request }: { error: unknown; request: FastifyRequest },
): void {
  if (!isMusterError(error) || ![401, 403, 429].includes(STATUS[error.code])) return
  const { code, evidence } = error
  log.warn({ code, evidence, address: request.ip, route: request.routeOptions.url }, 'admin request refused')
}

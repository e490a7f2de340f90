import type { Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Static, TSchema } from 'typebox'
import { Compile } from 'typebox/compile'
import { MusterError } from '#shared/errors'
import type { Channel } from '../channel.ts'
import type { Deps } from '../deps.ts'
import type { Actor } from '../registry/registry.ts'
import {
  actorOf,
  type Caller,
  type CallerDeps,
  demand,
  type PeerCertificate,
  peerOf,
  type Role,
  whoMayCall,
} from './caller.ts'
import type { Limits } from './limits.ts'
import { channelOf } from './tls-channel.ts'

/** A request after its caller and its contents have been checked. */
export interface Call<Body = unknown, Query = unknown> {
  readonly deps: Deps
  readonly limits: Limits
  readonly caller: Caller
  readonly by: Actor
  readonly address: string
  /** What the request can be linked to. */
  readonly channel: Channel
  /** The client certificate as it was presented, whoever issued it. */
  peer(): PeerCertificate | null
  readonly body: Body
  readonly query: Query
  /** A parameter of the path. */
  param(name: string): string
  /** For routes that take their time: aborted when the client has gone or the service stops. */
  signal(): AbortSignal
}

/** An answer that is not there yet: 202, and when to ask again (RFC 9110 section 15.3.3). */
export class Later {
  readonly body: object
  readonly retryAfterS: number

  constructor(body: object, retryAfterS: number) {
    this.body = body
    this.retryAfterS = retryAfterS
  }
}

/** A route as data: the role is part of it, so that a test can try every route as everybody. */
export interface Route {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE'
  readonly path: string
  readonly role: Role
  /** Open to anyone, and who shows good credentials is known all the same. */
  readonly greets?: true
  /** For renewals: `identifyLate` says who calls. */
  readonly renews?: true
  /** Checks body and query, then acts. What it returns is sent as JSON, a stream as NDJSON, `Later` as 202, nothing as 204. */
  run(call: Call): Promise<unknown>
}

interface RouteOptions<Body extends TSchema, Query extends TSchema> extends Omit<Route, 'run'> {
  readonly body?: Body
  readonly query?: Query
  handle(call: Call<Static<Body>, Static<Query>>): Promise<unknown>
}

/** Compiles the schemas of a route. */
export function route<Body extends TSchema, Query extends TSchema>(
  options: RouteOptions<Body, Query>,
): Route {
  const { method, path, role, greets, renews, handle } = options
  const body = checker(options.body, 'body')
  const query = checker(options.query, 'query')
  return {
    method,
    path,
    role,
    ...(greets ? { greets } : {}),
    ...(renews ? { renews } : {}),
    run: async (call) => handle({ ...call, body: body(call.body), query: query(call.query) }),
  }
}

/** @returns a function that gives the value its type, or throws invalid_request with the first three faults */
function checker<Schema extends TSchema>(schema: Schema | undefined, part: 'body' | 'query') {
  if (!schema) return () => undefined as Static<Schema> // a route without the schema has no use for the part
  const validator = Compile(schema)
  return (value: unknown): Static<Schema> => {
    const candidate = part === 'query' ? converted(value, (text) => validator.Convert(text)) : value
    if (validator.Check(candidate)) return candidate as Static<Schema> // that is what Check says
    const faults = validator.Errors(candidate).slice(0, 3)
    const shown = faults.map(({ instancePath, message }) => `${instancePath || part} ${message}`).join('; ')
    throw new MusterError('invalid_request', `Cannot read the ${part}: ${shown}`)
  }
}

/** A query knows only text. Nothing is rounded or made up: what does not read back as it was stays text. */
function converted(query: unknown, convert: (query: unknown) => unknown): unknown {
  const before = Object.entries(Object(query))
  const after = new Map(Object.entries(Object(convert({ ...Object(query) }))))
  return Object.fromEntries(
    before.map(([name, text]) => [name, `${after.get(name)}` === text ? after.get(name) : text]),
  )
}

export interface ServeOptions extends CallerDeps {
  readonly routes: readonly Route[]
  readonly stopping: AbortSignal
  identify(at: CallerDeps, request: FastifyRequest): Promise<Caller>
  /** The same where a certificate may have expired a while ago. */
  identifyLate?(at: CallerDeps, request: FastifyRequest): Promise<Caller>
  /** Told of every error before it is sent. */
  onFailure?(error: unknown, at: { request: FastifyRequest; caller: Caller | null }): Promise<void>
}

/** Puts the routes on the listener. Who calls is settled before the body is read. */
export function serveRoutes(app: FastifyInstance, options: ServeOptions): void {
  const callers = new WeakMap<FastifyRequest, Caller>()
  const settle = async (one: Route, request: FastifyRequest): Promise<void> => {
    if (one.greets) callers.set(request, await whoMayCall(options, request, options.identify))
    if (one.role === 'anyone') return
    const identify = (one.renews && options.identifyLate) || options.identify
    const caller = await identify(options, request)
    callers.set(request, caller)
    demand(caller, one.role)
  }
  for (const one of options.routes) {
    app.route({
      method: one.method,
      url: one.path,
      ...(one.role === 'anyone' && !one.greets ? {} : { onRequest: (request) => settle(one, request) }),
      onError: async (request, _reply, error) => {
        await options.onFailure?.(error, { request, caller: callers.get(request) ?? null })
      },
      handler: async (request, reply) => {
        const caller = callers.get(request) ?? { kind: 'nobody' }
        return answer(reply, await one.run(callOf({ request, reply, caller }, options)))
      },
    })
  }
}

function callOf(
  { request, reply, caller }: { request: FastifyRequest; reply: FastifyReply; caller: Caller },
  { deps, limits, stopping }: ServeOptions,
): Call {
  const params = request.params as Record<string, string> // Fastify fills it from the path
  return {
    deps,
    limits,
    caller,
    by: actorOf(caller),
    address: request.ip,
    channel: channelOf(request.raw.socket),
    peer: () => peerOf(request.raw.socket),
    body: request.body,
    query: request.query,
    param: (name) => params[name] ?? '',
    signal: () => {
      const gone = new AbortController()
      reply.raw.once('close', () => gone.abort())
      return AbortSignal.any([gone.signal, stopping])
    },
  }
}

function answer(reply: FastifyReply, result: unknown): FastifyReply {
  if (result === undefined) return reply.code(204).send()
  if (result instanceof Later) {
    return reply.code(202).header('retry-after', result.retryAfterS).send(result.body)
  }
  if (isStream(result)) return reply.type('application/x-ndjson').send(result)
  return reply.send(result)
}

function isStream(result: unknown): result is Readable {
  return typeof result === 'object' && result !== null && 'pipe' in result
}

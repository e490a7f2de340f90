import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { ports } from '#shared/layout'
import { scratch } from '../support/muster.ts'
import { adminOf, startPlane } from '../support/plane.ts'
import { MUSTER_COMMAND as muster, sh } from '../support/sh.ts'

t.test('strongSwan alone', { timeout: 120_000 }, async (t) => {
  const cwd = scratch(t)
  const plane = await startPlane(t, { data: join(cwd, 'data') })
  const admin = adminOf(t, plane)
  const env = { URL: `https://localhost:${ports(plane.portBase).enrollment}` }
  const est = 'pki --est --url $URL --cacert data/ca/root.crt --outform pem'
  const newToken = (options: string) => sh(cwd, `${muster} token create --data data ${options}`).trim()
  const request = (name: string) =>
    sh(
      cwd,
      `pki --gen --type ecdsa --size 256 > ${name}.key && pki --req --in ${name}.key --type ecdsa --dn CN=${name} > ${name}.req`,
    )

  await t.test('fetches the CA certificates, and trusts them by the root', async (t) => {
    sh(cwd, 'pki --estca --url $URL --cacert data/ca/root.crt --caout ca --outform pem', env)
    t.match(sh(cwd, 'openssl verify -CAfile data/ca/root.crt ca.pem ca-1.pem'), /ca.pem: OK\nca-1.pem: OK/)
  })

  await t.test('enrolls with a token, over TLS 1.2', async (t) => {
    request('swan-1')
    const TOKEN = newToken('--batch swans --uses 1')
    sh(cwd, `${est} --in swan-1.req --userpass ":$TOKEN" > swan-1.crt`, { ...env, TOKEN })
    const verified =
      'openssl verify -purpose sslclient -CAfile data/ca/root.crt -untrusted ca-1.pem swan-1.crt'
    t.match(sh(cwd, verified), /OK/)
    t.match(sh(cwd, 'openssl x509 -in swan-1.crt -noout -subject'), /CN = swan-1/)
    t.throws(() => sh(cwd, `${est} --in swan-1.req --userpass ":wrong"`, env), 'not with another password')
  })

  await t.test(
    're-enrolls with its certificate; the request, which names a URI, is of openssl',
    async (t) => {
      sh(cwd, 'pki --gen --type ecdsa --size 256 --outform pem > next.key')
      sh(
        cwd,
        `openssl req -new -key next.key -subj /CN=swan-1 -addext "subjectAltName=$(openssl x509 -in swan-1.crt -noout -ext subjectAltName | grep -o 'URI:.*')" -outform DER -out next.req`,
      )
      sh(cwd, `${est} --in next.req --cacert ca-1.pem --cert swan-1.crt --key swan-1.key > next.crt`, env)
      t.match(sh(cwd, 'openssl x509 -in next.crt -noout -subject'), /CN = swan-1/)
      t.equal(
        sh(cwd, 'openssl x509 -in next.crt -noout -pubkey'),
        sh(cwd, 'openssl pkey -in next.key -pubout'),
      )
      request('swan-2')
      t.throws(
        () => sh(cwd, `${est} --in swan-2.req --cacert ca-1.pem --cert next.crt --key next.key`, env),
        'not as another device',
      )
    },
  )

  await t.test(
    'waits while an operator has to approve it, and gets its certificate then',
    { timeout: 100_000 },
    async (t) => {
      request('swan-3')
      const TOKEN = newToken('--batch swans --uses 1 --approval')
      const waiting = spawn(
        'bash',
        ['-c', `${est} --in swan-3.req --userpass ":$TOKEN" --interval 1 --maxpolltime 90 > swan-3.crt`],
        { cwd, env: { ...process.env, ...env, TOKEN }, stdio: 'ignore' },
      )
      const ended = once(waiting, 'exit')
      const deadline = AbortSignal.timeout(30_000)
      let application = null
      while (application === null) {
        deadline.throwIfAborted()
        const { devices } = await admin.listDevices({ state: 'pending' })
        application = devices[0]?.application ?? null
      }
      const key = sh(cwd, 'openssl pkey -in swan-3.key -inform DER -pubout -outform DER | sha256sum')
      t.equal(key.split(' ')[0], application.spki, 'the operator sees the fingerprint that openssl shows')
      sh(cwd, `${muster} device approve swan-3 --spki ${application.spki.slice(0, 16)} --data data`)
      t.same(await ended, [0, null])
      t.ok(existsSync(join(cwd, 'swan-3.crt')))
      t.match(sh(cwd, 'openssl x509 -in swan-3.crt -noout -subject'), /CN = swan-3/)
    },
  )
})

/** CA keys in a real security module (softhsm2), through the real binding, from the first command to the rollover. */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { ports } from '#shared/layout'
import { scratch } from '../support/muster.ts'
import { muster, startPlane } from '../support/plane.ts'
import { MUSTER_COMMAND, sh } from '../support/sh.ts'

const MODULE = ['/usr/lib/softhsm/libsofthsm2.so', '/usr/lib64/pkcs11/libsofthsm2.so'].find(existsSync) ?? ''
const NAMES = '--trust-domain muster.local --http-base http://pki.muster.test:8080'
const TOOL = `pkcs11-tool --module ${MODULE} --token-label ca --login --pin 1234`

/** A new token with the label `ca`, and the environment in which it is seen. */
function token(t: Test) {
  const cwd = scratch(t)
  mkdirSync(join(cwd, 'tokens'))
  writeFileSync(join(cwd, 'hsm.conf'), `directories.tokendir = ${cwd}/tokens\nobjectstore.backend = file\n`)
  writeFileSync(join(cwd, 'pin'), '1234\n', { mode: 0o600 })
  const env = { SOFTHSM2_CONF: join(cwd, 'hsm.conf') }
  sh(cwd, 'softhsm2-util --init-token --free --label ca --so-pin 0000 --pin 1234', env)
  const uri = (object: string) =>
    `pkcs11:token=ca;object=${object};type=private?module-path=${MODULE}&pin-source=file:${cwd}/pin`
  t.intercept(process, 'env', { value: { ...process.env, ...env } })
  const run = (script: string) => sh(cwd, script.replaceAll('muster ', `${MUSTER_COMMAND} `), env)
  return { cwd, data: join(cwd, 'data'), uri, run, env }
}

/** Enrolls as curl and openssl would; leaves <id>.key and <id>.crt. */
function enroll({ run, data }: ReturnType<typeof token>, of: { id: string; portBase: number }): void {
  const { id } = of
  const csr = `openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ${id}.key -subj /CN=${id}`
  const url = `https://localhost:${ports(of.portBase).enrollment}/.well-known/est/simpleenroll`
  const post = `curl -fsS --cacert ${data}/ca/root.crt -H 'Content-Type: application/pkcs10' --data-binary @-`
  run(`TOKEN=$(muster token create --data ${data} --batch lab --uses 1)
    ${csr} -outform DER 2>/dev/null | base64 | ${post} --user ":$TOKEN" ${url} |
    base64 -d | openssl pkcs7 -inform DER -print_certs -out ${id}.crt`)
}

t.test('a plane whose CA keys were never outside of a token', async (t) => {
  const hsm = token(t)
  const { cwd, data, uri, run } = hsm
  const keys = `--root-key '${uri('root')}' --device-key '${uri('device')}' --infrastructure-key '${uri('infra')}'`

  await t.test('its CAs are made in the token', async (t) => {
    t.match(run(`muster ca init ${NAMES} ${keys} --data ${data}`), /Root CA {2}SHA-256 [0-9a-f]{64}/)
    for (const ca of ['root', 'device-ca', 'infrastructure-ca']) {
      t.match(readFileSync(join(data, 'ca', `${ca}.key`), 'utf8'), /^pkcs11:token=ca;object=/)
    }
    t.equal(run(`grep -rl 'PRIVATE KEY' ${data}/ca || true`), '')
    t.equal(run(`${TOOL} --list-objects --type privkey 2>&1 | grep -c 'never extractable'`).trim(), '3')
    run(
      'openssl verify -x509_strict -CAfile data/ca/root.crt data/ca/device-ca.crt data/ca/infrastructure-ca.crt',
    )
  })

  const first = await startPlane(t, { data })
  await t.test('a device enrolls, and openssl verifies what it got', async () => {
    enroll(hsm, { id: 'lamp', portBase: first.portBase })
    enroll(hsm, { id: 'meter', portBase: first.portBase })
    run(
      'openssl verify -x509_strict -purpose sslclient -CAfile data/ca/root.crt -untrusted data/ca/device-ca.crt lamp.crt',
    )
  })

  await t.test('a CRL is signed in the token', async (t) => {
    run(`muster revoke meter --now --reason keyCompromise --yes --data ${data}`)
    const id = run(
      `openssl x509 -in ${data}/ca/device-ca.crt -outform DER | sha256sum | cut -d' ' -f1`,
    ).trim()
    const http = `http://localhost:${ports(first.portBase).http}`
    run(`curl -fsS --retry 20 --retry-all-errors --retry-delay 1 ${http}/crl/${id}.crl -o full.crl`)
    run(
      'openssl crl -inform DER -in full.crl -CAfile data/ca/device-ca.crt -noout 2>&1 | grep -q "verify OK"',
    )
    const serial = run('openssl x509 -in meter.crt -noout -serial | cut -d= -f2').trim()
    t.match(run('openssl crl -inform DER -in full.crl -noout -text'), new RegExp(serial))
  })
  await first.stop()

  const second = await startPlane(t, { data })
  await t.test('after a restart the device renews', async (t) => {
    const url = `https://localhost:${ports(second.portBase).enrollment}/.well-known/est/simplereenroll`
    run(`openssl req -new -key lamp.key -subj /CN=lamp -addext subjectAltName=URI:spiffe://muster.local/device/lamp -outform DER |
      base64 | curl -fsS --cacert data/ca/root.crt --cert lamp.crt --key lamp.key -H 'Content-Type: application/pkcs10' --data-binary @- ${url} |
      base64 -d | openssl pkcs7 -inform DER -print_certs -out next.crt`)
    run('openssl verify -x509_strict -CAfile data/ca/root.crt -untrusted data/ca/device-ca.crt next.crt')
    t.not(run('openssl x509 -in next.crt -noout -serial'), run('openssl x509 -in lamp.crt -noout -serial'))
  })

  await t.test(
    'while the token is away requests are refused for now, and go on when it is back',
    async (t) => {
      const url = `https://localhost:${ports(second.portBase).enrollment}/.well-known/est/simpleenroll`
      const send = `curl -sS --cacert data/ca/root.crt -H 'Content-Type: application/pkcs10' --data-binary @fan.csr --user ":$(cat fan.token)" ${url}`
      run(`muster token create --data ${data} --batch lab --uses 1 > fan.token
      openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout fan.key -subj /CN=fan -outform DER 2>/dev/null | base64 > fan.csr
      mv tokens away && mkdir tokens`)
      const refused = run(`${send} --include`)
      t.match(refused, /^HTTP\/1.1 503/)
      t.match(refused, /^Retry-After: 5/m)
      run('rmdir tokens && mv away tokens')
      run(
        `${send} --fail --retry 30 --retry-delay 1 | base64 -d | openssl pkcs7 -inform DER -print_certs -out fan.crt`,
      )
      run('openssl verify -CAfile data/ca/root.crt -untrusted data/ca/device-ca.crt fan.crt')
    },
  )

  await t.test('a rollover makes its keys in the token, too', async (t) => {
    run(`muster ca rollover start --data ${data}`)
    run(`muster ca rollover cut-over --threshold 0% --data ${data}`)
    const made = readdirSync(join(data, 'ca', 'generations')).filter((name) => name.endsWith('.key'))
    t.equal(made.length, 2)
    for (const name of made) {
      t.match(
        readFileSync(join(data, 'ca', 'generations', name), 'utf8'),
        /^pkcs11:token=ca;object=(device|infra);id=/,
      )
    }
    enroll(hsm, { id: 'pump', portBase: second.portBase })
  })
  await second.stop()

  await t.test('a backup carries where the keys are, and nothing with which to use them', async (t) => {
    t.notMatch(run(`muster ca backup --out backup.tar --data ${data} 2>&1`), /not encrypted/)
    t.match(run('tar -xOf backup.tar ca/device-ca.key'), /^pkcs11:token=ca/)
    t.notMatch(readFileSync(join(cwd, 'backup.tar'), 'latin1'), /\b1234\n/)
  })

  await t.test('it does not start without the right token, PIN and key, and says which', async (t) => {
    const refused = async (says: RegExp) => {
      const { status, stderr } = await muster(['enrollment', '--data', data, '--port-base', '31000'], {
        environment: hsm.env,
      })
      t.not(status, 0)
      t.match(stderr, says)
      t.notMatch(stderr, /1234|4321/)
    }
    renameSync(join(cwd, 'tokens'), join(cwd, 'away'))
    mkdirSync(join(cwd, 'tokens'))
    await refused(/Cannot use the token "ca": it is away/)
    run('rmdir tokens && mv away tokens')
    writeFileSync(join(cwd, 'pin'), '4321\n')
    await refused(
      /Cannot log in to the token "ca": C_Login answered CKR_PIN_INCORRECT; the PIN is not tried again/,
    )
    writeFileSync(join(cwd, 'pin'), '1234\n')
    run('chmod 644 pin')
    await refused(/Cannot use ".*\/pin": its mode is 0644; fix: chmod 600/)
    run('chmod 600 pin')
    const [device, infrastructure] = ['device-ca', 'infrastructure-ca'].map((ca) =>
      join(data, 'ca', `${ca}.key`),
    )
    const kept = readFileSync(device ?? '')
    writeFileSync(device ?? '', readFileSync(infrastructure ?? ''))
    await refused(/Cannot sign with the key "infra" of the token: it is another one than in the certificate/)
    writeFileSync(device ?? '', kept)
  })
})

t.test('existing keys of other kinds, and a root in a token elsewhere', async (t) => {
  const { data, uri, run, ...hsm } = token(t)
  run(`${TOOL} --keypairgen --key-type EC:secp384r1 --label p384 --id 01`)
  run(`${TOOL} --keypairgen --key-type rsa:3072 --label rsa --id 02`)
  const keys = `--device-key '${uri('p384')}' --infrastructure-key '${uri('infra')}'`
  run(`muster ca init --offline-root ${NAMES} ${keys} --data ${data}`)
  for (const ca of ['device-ca', 'infrastructure-ca']) {
    run(`muster ca sign-issuer --root-dir vault --root-key '${uri('rsa')}' ${NAMES} ${data}/ca/${ca}.csr`)
  }
  run(`muster ca install vault/device-ca.chain.pem vault/infrastructure-ca.chain.pem --data ${data}`)
  const plane = await startPlane(t, { data })
  enroll({ data, uri, run, ...hsm }, { id: 'lamp', portBase: plane.portBase })
  run('openssl verify -x509_strict -CAfile data/ca/root.crt -untrusted data/ca/device-ca.crt lamp.crt')
  t.match(run('openssl x509 -in lamp.crt -noout -text'), /ecdsa-with-SHA384/)
  t.match(run('openssl x509 -in data/ca/device-ca.crt -noout -text'), /sha256WithRSAEncryption/)
  t.match(run(`muster audit verify --data ${data}`), /./)
})
